"""Trained models in MLflow's format: a traced graph that loads without this project.

The project's checkpoint lies beside the graph, so that the model can be a teacher again.
"""

import logging
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from kd_pipeline.import_path import MODULE
from kd_pipeline.models.architectures import TIMM
from kd_pipeline.models.checkpoint import ModelCheckpoint, build_classifier, write_checkpoint
from kd_pipeline.models.onnx_graph import OnnxNetwork
from kd_pipeline.tracking.fluent import without_warnings

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

CHECKPOINT = Path("extra_files", "checkpoint")
"""The checkpoint's folder inside a logged model; MLflow gives the first part its name."""

logger = logging.getLogger(__name__)


def export_model(checkpoint: ModelCheckpoint, folder: Path) -> bool:
    """Write a checkpoint as an MLflow model into an empty folder; nothing is sent.

    `mlflow.pyfunc` and `mlflow.pytorch` load it in a process that has torch and mlflow only.
    Torch's global random state is not left as it was.

    Returns:
        Whether it is written: not so a teacher from elsewhere that cannot be exported.
    """
    if reason := _why_not(checkpoint):
        logger.info("%s is not logged as an MLflow model: %s", checkpoint.architecture, reason)
        return False
    with without_warnings():
        import mlflow.pytorch
        from mlflow.models import Model

    version = torch.__version__.partition("+")[0]  # The index of the build is no part of it.
    with (
        without_warnings(),
        tempfile.TemporaryDirectory() as beside,
    ):
        write_checkpoint(checkpoint, files := Path(beside, CHECKPOINT.name))
        mlflow.pytorch.save_model(
            build_classifier(checkpoint),
            str(folder),
            mlflow_model=Model(metadata={"class_names": list(checkpoint.class_names)}),
            input_example=_example(checkpoint).numpy(),
            extra_files=[str(files)],
            # MLflow would take seconds per model to infer them.
            pip_requirements=[f"torch=={version}", f"mlflow=={mlflow.__version__}"],
        )
    return True


def upload_model(folder: Path, client: "MlflowClient", run: "Run") -> str:
    """Upload an exported model as the one of a run, which may be closed.

    May be called again after any failure: a half-uploaded model of the run is completed. The link
    from the run to the model is made last, so that a linked model is a whole one.

    Returns:
        The model's id.
    """
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus, Metric
    from mlflow.models import Model

    run_id, experiment_id = run.info.run_id, run.info.experiment_id
    halves = client.search_logged_models([experiment_id], f"source_run_id = '{run_id}'")
    if halves:
        model = halves[0]
    else:
        model = client.create_logged_model(experiment_id, name="model", source_run_id=run_id)
    description = Model.load(str(folder))
    description.run_id, description.model_id = run_id, model.model_id
    description.model_uuid = model.model_id
    description.artifact_path = model.artifact_location
    description.save(str(folder / "MLmodel"))
    client.log_model_artifacts(model.model_id, str(folder))
    once = [metric for metric in run.data.to_proto().metrics if metric.step == 0]
    values = [(metric.key, metric.value, metric.timestamp, 0) for metric in once]
    of_model = [Metric(*value, model.model_id) for value in values]
    client.log_batch(run_id, metrics=of_model)
    client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
    return str(model.model_id)


def _why_not(checkpoint: ModelCheckpoint) -> str | None:
    """Why it cannot be logged; networks from elsewhere have to be tried."""
    if checkpoint.architecture == OnnxNetwork.architecture:
        return "it is a graph already, which lies in the catalog's checkpoint"
    if checkpoint.architecture.startswith((TIMM, MODULE)):
        try:
            torch.export.export(build_classifier(checkpoint), (_example(checkpoint),))
        except Exception as error:  # Of many kinds, from anywhere inside torch or the network.
            return f"torch.export cannot trace it ({type(error).__name__})"
    return None


def _example(checkpoint: ModelCheckpoint) -> torch.Tensor:
    # Two images at least: torch.export takes a batch of one for a constant.
    shape = checkpoint.facts.get("image_shape", checkpoint.preprocessing.shape)
    return torch.zeros((2, *shape), dtype=torch.uint8)
