"""Settings of tracking."""

from kd_pipeline.config import Params


class MLflowParams(Params):
    """`mlflow.yml`."""

    enabled: bool = True
    tracking_uri: str | None = None
    """Null is the database `mlflow.db` at the project's root."""
    experiment: str = "kd_pipeline"
