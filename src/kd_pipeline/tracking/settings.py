"""Settings of tracking."""

from kd_pipeline.config import Params, PositiveFloat


class MLflowParams(Params):
    """`mlflow.yml`."""

    enabled: bool = True
    tracking_uri: str | None = None
    """Null is the database `mlflow.db` at the project's root."""
    experiment: str = "kd_pipeline"
    max_wait_seconds: PositiveFloat = 60.0
    """How long a run waits for MLflow, all in all; what is not sent by then is kept on disk."""
