"""Settings of tracking."""

from typing import Literal

from kd_pipeline.config import Params, PositiveFloat

Models = Literal["best", "all", "none"]


class MLflowParams(Params):
    """`mlflow.yml`."""

    enabled: bool = True
    tracking_uri: str | None = None
    """Null is the database `mlflow.db` at the project's root."""
    experiment: str = "kd_pipeline"
    models: Models = "best"
    """Whose models are uploaded: of each role the best on validation, all replicates, or none."""
    max_wait_seconds: PositiveFloat = 60.0
    """How long a run waits for MLflow, all in all; what is not sent by then is kept on disk.

    A registration and the fetching of a model each may take as long."""
