"""Trained models in MLflow's own format: a traced graph that loads without this project."""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from kd_pipeline.models.architectures import MODULE, TIMM
from kd_pipeline.models.checkpoint import (
    GRAPHS,
    IMPORTED_LOGITS,
    ModelCheckpoint,
    build_classifier,
)

FOREIGN = (TIMM, MODULE)

logger = logging.getLogger(__name__)


def log_model(
    checkpoint: ModelCheckpoint, *, uri: str, experiment_id: str, run_id: str
) -> str | None:
    """Log a checkpoint as an MLflow model of a run, whether the run is open or closed.

    `mlflow.pyfunc` and `mlflow.pytorch` load it in a process that has torch and mlflow only.
    Global random state is left as it was.

    Returns:
        The model's id; None for a teacher from elsewhere that cannot be exported, which is said.
    """
    import mlflow
    import torch

    if reason := _why_not(checkpoint):
        logger.info("%s is not logged as an MLflow model: %s", checkpoint.architecture, reason)
        return None

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
    version = torch.__version__.partition("+")[0]  # The index of the build is no part of it.
    with (
        fluent_uri(uri),
        _one_thread(),
        torch.random.fork_rng(devices=range(torch.cuda.device_count())),
    ):
        Model.log(
            artifact_path=None,
            name="model",
            flavor=mlflow.pytorch,
            pytorch_model=build_classifier(checkpoint),
            input_example=_example(checkpoint),
            # Given, not inferred: inferring installs nothing but takes seconds per model.
            pip_requirements=[f"torch=={version}", f"mlflow=={mlflow.__version__}"],
            run_id=run_id,
            model_id=model_id,
            # Loads and runs each model once more; tests/tracking does that for all of them.
            validate_serving_input=False,
            metadata={"class_names": list(checkpoint.class_names)},
        )
    return model_id


def _why_not(checkpoint: ModelCheckpoint) -> str | None:
    if checkpoint.architecture == IMPORTED_LOGITS:
        return "logits were imported, and no model"
    if checkpoint.architecture in GRAPHS:
        return "it is a graph already, which lies in the catalog's checkpoint"
    if checkpoint.architecture.startswith(FOREIGN):
        return _export_problem(checkpoint)
    return None


def _export_problem(checkpoint: ModelCheckpoint) -> str | None:
    """Networks of others may do what torch.export cannot trace; MLflow has no way round it."""
    import torch

    try:
        with _one_thread():
            torch.export.export(
                build_classifier(checkpoint), (torch.from_numpy(_example(checkpoint)),)
            )
    except Exception as error:  # Of many kinds, from anywhere inside torch or the network.
        return f"torch.export cannot trace it ({type(error).__name__})"
    return None


def _example(checkpoint: ModelCheckpoint) -> "np.ndarray[Any, Any]":
    # Two images at least: torch.export takes a batch of one for a constant.
    shape = checkpoint.facts.get("image_shape", checkpoint.preprocessing.shape)
    return np.zeros((2, *shape), dtype=np.uint8)


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
def fluent_uri(uri: str) -> Iterator[None]:
    """Set MLflow's global URI: its flavours know no other, and it lands in the environment."""
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
