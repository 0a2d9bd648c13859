"""The stages, one folder each, wired out of plain functions."""
