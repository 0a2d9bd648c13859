"""Runs, points and models for MLflow: the only room that imports mlflow, and never on import."""
