"""From checkpoints to files, for all targets and all models asked for."""

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import kd_pipeline
from kd_pipeline.data.dataset import LabelledImages
from kd_pipeline.errors import ExportError, ParameterError
from kd_pipeline.events import Progress, emit
from kd_pipeline.export.selection import (
    TEACHER,
    calibration_images,
    check_origin,
    choose_replicates,
    learnt_from,
)
from kd_pipeline.export.settings import ModelExportParams
from kd_pipeline.export.target import ExportedFile, ExportJob
from kd_pipeline.export.targets import TARGETS, check_installed
from kd_pipeline.models.checkpoint import (
    ModelCheckpoint,
    build_classifier,
    count_macs,
    count_parameters,
    snapshot,
)
from kd_pipeline.models.classifier import Classifier
from kd_pipeline.models.settings import Model

TEACHER_TARGETS = ("onnx",)
"""The teacher is measured beside the students and does not ship; bounds are theirs."""
AWARE = "int8_aware"
"""Precision in tables of int8 files whose weights were fine-tuned with fake quantisation."""


@dataclass(frozen=True)
class ExportedModel:
    """One checkpoint and the files made of it."""

    role: str
    replicate: int
    is_best: bool
    """Of its role's replicates on validation; the files of the others are only measured."""
    checkpoint: ModelCheckpoint
    files: Mapping[tuple[str, str], ExportedFile]
    """By target and precision, the latter perhaps `AWARE`."""
    validation_accuracy: float
    """Of the checkpoint; NaN without validation rows."""
    facts: Mapping[str, int]
    """`parameters`, `macs`, and `num_replicates` of its role, or members of a teacher."""
    input_shape: tuple[int, int, int]
    """Channels, height and width of the pixels that the files take."""
    learnt_from: str
    """`labels`, `teacher`, or another model's role."""
    folder: Path
    """Where the files are."""


def export_models(
    data: LabelledImages,
    models: Mapping[str, Sequence[ModelCheckpoint]],
    params: ModelExportParams,
    *,
    folder: Path,
) -> list[ExportedModel]:
    """Make the files of all models that `params` asks for.

    Args:
        data: Of which the transfer set calibrates and the validation set chooses.
        models: Checkpoints by role.
        params: `model_export`.
        folder: An existing empty one, for a folder per role and replicate.

    Raises:
        ExportError: If a package is missing, a target cannot hold a model, or a file is too large.
        CheckpointError: If a model's classes are not the images'.
    """
    if not models:
        return []
    check_installed([*params.targets, *(TEACHER_TARGETS if TEACHER in models else ())])
    for role, checkpoints in models.items():
        for checkpoint in checkpoints:
            check_origin(checkpoint, data, role)
            if role != TEACHER:
                check_weights_fit(checkpoint, params)
    calibration = calibration_images(data, params)
    chosen, sources = list(choose_replicates(data, models, params)), learnt_from(models)
    exported = []
    for done, (role, replicate, accuracy, is_best) in enumerate(chosen):
        emit(Progress("export", done, len(chosen), "models", role))
        checkpoint = models[role][replicate]
        place = folder / role / str(replicate)
        shape = tuple(data.images.pixels.shape[1:])
        stated = describe(checkpoint, role=role, replicate=replicate, input_shape=shape)
        job = ExportJob(checkpoint, shape, calibration, place, in_text(stated))
        files = export_files(job, params.targets if role != TEACHER else TEACHER_TARGETS)
        if role != TEACHER:
            check_budget(files, params)
        exported.append(
            ExportedModel(
                role, replicate, is_best, checkpoint, files, accuracy,
                facts=_sizes(checkpoint) | {"num_replicates": len(models[role])},
                input_shape=shape, learnt_from=sources[role], folder=place,
            )
        )  # fmt: skip
    emit(Progress("export", len(chosen), len(chosen), "models"))
    return exported


def _sizes(checkpoint: ModelCheckpoint) -> dict[str, int]:
    classifier = build_classifier(checkpoint)
    return {"parameters": count_parameters(classifier.network), "macs": count_macs(classifier)}


def export_files(job: ExportJob, targets: Sequence[str]) -> dict[tuple[str, str], ExportedFile]:
    """Make one model's files for all targets, into the job's folder, which is made.

    Raises:
        ExportError: If a target cannot hold the model.
    """
    files: dict[tuple[str, str], ExportedFile] = {}
    for target in targets:
        for each, precision in _variants(job):
            each.folder.mkdir(parents=True, exist_ok=True)
            for file in TARGETS[target].export(each):
                if precision is None:
                    files[target, file.precision] = file
                elif file.precision == "int8":
                    files[target, precision] = file
                else:  # Nobody runs weights that were tuned for int8 in float32.
                    file.path.unlink()
    return files


def _variants(job: ExportJob) -> Iterator[tuple[ExportJob, str | None]]:
    yield job, None
    if (state := job.checkpoint.quantised_state) is not None:
        # Its post-training int8 export is the model that the fine-tuning simulated.
        fine_tuned = replace(job.checkpoint, state=state, quantised_state=None)
        yield replace(job, checkpoint=fine_tuned, folder=job.folder / AWARE), AWARE


def check_budget(files: Mapping[tuple[str, str], ExportedFile], params: ModelExportParams) -> None:
    """Refuse int8 files that take more flash than `budget_bytes`.

    Raises:
        ExportError: With by how much.
    """
    for (target, precision), file in files.items():
        if params.budget_bytes is None or precision == "float32":
            continue
        taken = file.sizes.get("flash_bytes", file.sizes["size_bytes"])
        if taken > params.budget_bytes:
            raise ExportError(
                f"`model_export.budget_bytes` must be at least what {file.path.name} ({target}) "
                f"takes, got {params.budget_bytes:,}: it has {taken:,} bytes, "
                f"{taken - params.budget_bytes:,} too many"
            )


def check_weights_fit(checkpoint: ModelCheckpoint, params: ModelExportParams) -> None:
    """Refuse a budget that the weights alone exceed, at one byte each.

    Raises:
        ParameterError: Naming both numbers.
    """
    num_weights = sum(tensor.numel() for tensor in checkpoint.state.values() if tensor.dim() > 1)
    if params.budget_bytes is not None and num_weights > params.budget_bytes:
        rule = f"be at least the {num_weights:,} weights of {checkpoint.architecture}, a byte each"
        raise ParameterError("model_export.budget_bytes", rule, params.budget_bytes)


def describe(
    checkpoint: ModelCheckpoint, *, role: str, replicate: int, input_shape: Sequence[int]
) -> dict[str, Any]:
    """What a file states about itself, JSON-able."""
    facts = checkpoint.facts
    return {
        "class_names": list(checkpoint.class_names),
        "input": "uint8 pixels [batch, channels, height, width]",
        "input_shape": list(input_shape),
        "output": "float32 logits [batch, num_classes]",
        "model": role,
        "replicate": replicate,
        "architecture": checkpoint.architecture,
        "arguments": dict(checkpoint.arguments),
        "checkpoint": checkpoint.fingerprint,
        "images": facts.get("images"),
        "splits": facts.get("splits"),
        "teacher": facts.get("teacher", []),
        "made_by": f"kd_pipeline {kd_pipeline.__version__}",
    }


def in_text(stated: Mapping[str, Any]) -> dict[str, str]:
    """The same for formats that hold text alone: what is not text in JSON."""
    return {k: v if isinstance(v, str) else json.dumps(v) for k, v in stated.items()}


def check_exportable(
    classifier: Classifier, model: Model, data: LabelledImages, params: ModelExportParams
) -> None:
    """Export an untrained model of the kind to come: what fails here would fail after training.

    Raises:
        ExportError: If a target cannot hold it, or its file is larger than its budget.
        ParameterError: If its weights alone are.
    """
    facts = {"images": data.images.fingerprint, "splits": 16 * "0", "teacher": [16 * "0"]}
    names = data.images.class_names
    checkpoint = snapshot(classifier, model, class_names=names, facts=facts)
    check_weights_fit(checkpoint, params)
    few = params.model_copy(update={"num_calibration_rows": 2})
    shape = tuple(data.images.pixels.shape[1:])
    stated = in_text(describe(checkpoint, role="student", replicate=0, input_shape=shape))
    with tempfile.TemporaryDirectory() as folder:
        job = ExportJob(checkpoint, shape, calibration_images(data, few), Path(folder), stated)
        check_budget(export_files(job, params.targets), params)
