"""What is measured of a classifier, and how two of them are compared."""
