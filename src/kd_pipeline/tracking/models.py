"""Trained models in MLflow's own format: a traced graph that loads without this project."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from kd_pipeline.models.checkpoint import ModelCheckpoint, build_classifier


def log_model(checkpoint: ModelCheckpoint, *, uri: str, experiment_id: str, run_id: str) -> str:
    """Log a checkpoint as an MLflow model of a run, whether the run is open or closed.

    `mlflow.pyfunc` and `mlflow.pytorch` load it in a process that has torch and mlflow only.
    Global random state is left as it was.

    Returns:
        The model's id.
    """
    import mlflow
    import torch

    with warnings.catch_warnings():
        # MLflow warns of its own type hints when this is imported.
        warnings.filterwarnings("ignore", message=".*AnyType", category=UserWarning)
        import mlflow.pyfunc
        from mlflow.models import Model

    model_id: str = (
        mlflow.MlflowClient(uri)
        .create_logged_model(experiment_id, name="model", source_run_id=run_id)
        .model_id
    )
    # Two images at least: torch.export takes a batch of one for a constant.
    version = torch.__version__.partition("+")[0]  # The index of the build is no part of it.
    example = torch.zeros((2, *checkpoint.preprocessing.shape), dtype=torch.uint8).numpy()
    with (
        _fluent_uri(uri),
        _one_thread(),
        torch.random.fork_rng(devices=range(torch.cuda.device_count())),
    ):
        Model.log(
            artifact_path=None,
            name="model",
            flavor=mlflow.pytorch,
            pytorch_model=build_classifier(checkpoint),
            input_example=example,
            # Given, not inferred: inferring installs nothing but takes seconds per model.
            pip_requirements=[f"torch=={version}", f"mlflow=={mlflow.__version__}"],
            run_id=run_id,
            model_id=model_id,
            # Loads and runs each model once more; tests/tracking does that for all of them.
            validate_serving_input=False,
            metadata={"class_names": list(checkpoint.class_names)},
        )
    return model_id


@contextmanager
def _one_thread() -> Iterator[None]:
    """Start no OpenMP threads from this thread.

    A second pool beside the main thread's stays for good: OpenMP then counts more threads than
    cores, stops waiting actively, and every later training of a small model takes twice as long.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _fluent_uri(uri: str) -> Iterator[None]:
    """MLflow's flavours know only the global URI, which also lands in the environment."""
    import mlflow

    before = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        # None unsets it, whatever its type hint says; an empty one would mean ./mlruns.
        mlflow.set_tracking_uri(None)  # type: ignore[arg-type]
        if before is not None:
            os.environ["MLFLOW_TRACKING_URI"] = before
