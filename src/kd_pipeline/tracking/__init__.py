"""Runs, metrics and models in MLflow: the only package that imports mlflow, and not on import."""
