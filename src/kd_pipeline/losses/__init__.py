"""Losses: pure functions, one value per example; the objective weighs and averages once."""
