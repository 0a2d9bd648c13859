"""Kedro datasets of the project: what a catalog entry reads and writes."""
