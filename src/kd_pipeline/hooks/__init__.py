"""Kedro hooks: checks, a lock, threads, memory, object storage, the terminal, MLflow."""
