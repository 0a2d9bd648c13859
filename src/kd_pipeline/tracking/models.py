"""Trained models in MLflow's format: a traced graph that loads without this project.

The project's checkpoint lies beside the graph, so that the model can be a teacher again.
"""

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from kd_pipeline.models.architectures import MODULE, TIMM
from kd_pipeline.models.checkpoint import ModelCheckpoint, build_classifier, write_checkpoint
from kd_pipeline.models.onnx_graph import OnnxNetwork
from kd_pipeline.tracking.fluent import fluent_uri, without_warnings

CHECKPOINT = Path("extra_files", "checkpoint")
"""The checkpoint's folder inside a logged model; MLflow gives the first part its name."""

logger = logging.getLogger(__name__)


def log_model(
    checkpoint: ModelCheckpoint, *, uri: str, experiment_id: str, run_id: str
) -> str | None:
    """Log a checkpoint as an MLflow model of a run, which may be closed.

    `mlflow.pyfunc` and `mlflow.pytorch` load it in a process that has torch and mlflow only.
    Global random state is left as it was.

    Returns:
        The model's id; None for a teacher from elsewhere that cannot be exported.
    """
    import mlflow

    if reason := _why_not(checkpoint):
        logger.info("%s is not logged as an MLflow model: %s", checkpoint.architecture, reason)
        return None

    with without_warnings():
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
        without_warnings(),
        _one_thread(),
        torch.random.fork_rng(devices=range(torch.cuda.device_count())),
        tempfile.TemporaryDirectory() as folder,
    ):
        write_checkpoint(checkpoint, files := Path(folder, CHECKPOINT.name))
        Model.log(
            artifact_path=None,
            name="model",
            flavor=mlflow.pytorch,
            pytorch_model=build_classifier(checkpoint),
            input_example=_example(checkpoint).numpy(),
            extra_files=[str(files)],
            # MLflow would take seconds per model to infer them.
            pip_requirements=[f"torch=={version}", f"mlflow=={mlflow.__version__}"],
            run_id=run_id,
            model_id=model_id,
            # It would load and run each model once more.
            validate_serving_input=False,
            metadata={"class_names": list(checkpoint.class_names)},
        )
    return model_id


def _why_not(checkpoint: ModelCheckpoint) -> str | None:
    """Why it cannot be logged; networks from elsewhere have to be tried."""
    if checkpoint.architecture == OnnxNetwork.architecture:
        return "it is a graph already, which lies in the catalog's checkpoint"
    if checkpoint.architecture.startswith((TIMM, MODULE)):
        try:
            with _one_thread():
                torch.export.export(build_classifier(checkpoint), (_example(checkpoint),))
        except Exception as error:  # Of many kinds, from anywhere inside torch or the network.
            return f"torch.export cannot trace it ({type(error).__name__})"
    return None


def _example(checkpoint: ModelCheckpoint) -> torch.Tensor:
    # Two images at least: torch.export takes a batch of one for a constant.
    shape = checkpoint.facts.get("image_shape", checkpoint.preprocessing.shape)
    return torch.zeros((2, *shape), dtype=torch.uint8)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Start no OpenMP threads from this thread.

    They would not end: with more threads than cores OpenMP stops waiting actively, and training
    small models in the main thread takes twice as long from then on.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
