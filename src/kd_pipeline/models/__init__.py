"""Architectures by name, classifiers that normalise their own input, and their checkpoints."""
