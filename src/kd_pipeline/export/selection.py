"""Which models are exported, which of their replicates is the best, and what calibrates them."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from kd_pipeline.config import Computing
from kd_pipeline.data.dataset import LabelledImages
from kd_pipeline.errors import CheckpointError, ExportError, ParameterError
from kd_pipeline.export.settings import ModelExportParams, Source
from kd_pipeline.models.checkpoint import (
    DATA_FACTS,
    ModelCheckpoint,
    build_classifier,
    check_classes,
    read_checkpoints,
)
from kd_pipeline.models.given import FetchedModel, ImagesAtHand, read_given
from kd_pipeline.models.onnx_graph import OnnxNetwork
from kd_pipeline.models.predict import predict_batches
from kd_pipeline.provenance import check_provenance
from kd_pipeline.randomness import derive_seed

logger = logging.getLogger(__name__)

ON_CPU = Computing(device="cpu")
"""In float32, where GPUs may round more coarsely by default."""
TEACHER, LABELS = "teacher", "labels"
GIVEN = "given"
"""Role of the model that `model_export.source` names."""


def select_models(
    models: Mapping[str, Sequence[ModelCheckpoint]], params: ModelExportParams
) -> dict[str, Sequence[ModelCheckpoint]]:
    """Those that `model_export.models` names.

    Raises:
        ParameterError: If one is not among them.
        CheckpointError: If one has no checkpoint, as a teacher of imported logits.
    """
    for role in params.models:
        if role not in models:
            raise ParameterError("model_export.models", "be models of this run", role, legal=models)
        if not models[role]:
            raise CheckpointError(
                f"`model_export.models` must have checkpoints, got none of {role}"
            )
    return {role: models[role] for role in params.models}


def read_models(folder: Path, params: ModelExportParams) -> dict[str, list[ModelCheckpoint]]:
    """Read the models that `model_export.models` names from a folder with one folder for each.

    Raises:
        ParameterError: If there is no such folder.
        CheckpointError: If it holds no complete set of checkpoints.
    """
    trained = sorted(path.name for path in folder.glob("[!.]*") if (path / "0").is_dir())
    for role in params.models:
        if role not in trained:
            rule = f"be models that were trained, with checkpoints in {folder}"
            raise ParameterError("model_export.models", rule, role, legal=trained)
    return {role: read_checkpoints(folder / role) for role in params.models}


def read_source(
    source: Source, data: LabelledImages, download: FetchedModel | None
) -> dict[str, list[ModelCheckpoint]]:
    """Read the model that `model_export.source` names, under the role `given`.

    Raises:
        ParameterError: If the source names nothing usable.
        CheckpointError: If it is damaged, of other classes, or a graph rather than a checkpoint.
    """
    images, name = data.images, "model_export.source"
    shape = tuple(images.pixels.shape[1:])
    at_hand = ImagesAtHand(images.class_names, shape, images.take(data.ids("transfer")[:2]))
    checkpoint = read_given(source, at_hand, name=name, fetched=download)
    if checkpoint.architecture == OnnxNetwork.architecture:
        raise CheckpointError(
            f"`{name}` must be a checkpoint, got an ONNX graph: it is a file already"
        )
    return {GIVEN: [checkpoint]}


def learnt_from(models: Mapping[str, Sequence[ModelCheckpoint]]) -> dict[str, str]:
    """What each role learnt from: `labels`, another of these roles, or else `teacher`."""
    fingerprints = {role: [one.fingerprint for one in models[role]] for role in models}
    found = {}
    for role, checkpoints in models.items():
        teacher = checkpoints[0].facts.get("teacher", [])
        named = next((other for other, own in fingerprints.items() if own == teacher), TEACHER)
        found[role] = named if teacher else LABELS
    return found


def compared(
    models: Mapping[str, Sequence[ModelCheckpoint]],
) -> dict[str, Sequence[ModelCheckpoint]]:
    """Those that are compared in pairs: neither the teacher nor students that teach others."""
    teaching = {TEACHER, *learnt_from(models).values()}
    return {role: checkpoints for role, checkpoints in models.items() if role not in teaching}


def check_origin(checkpoint: ModelCheckpoint, data: LabelledImages, role: str) -> None:
    """Refuse a model of other data: it may have been trained on these test images.

    One without record of its data gives a warning.

    Raises:
        CheckpointError: If its classes are not the images'.
        StaleArtefactError: If it states other ones.
    """
    check_classes(checkpoint, data.images.class_names, name=f"{role}.checkpoints")
    at_hand = data.labelled_provenance
    stated = {k: at_hand[k] for k in DATA_FACTS if k in checkpoint.facts}
    if not stated:
        unknown = "that the test images are not among them cannot be verified"
        logger.warning("`%s` has no record of its training data: %s", role, unknown)
    remedy = "train it again, or export it where it was trained"
    check_provenance(f"{role}.checkpoints", checkpoint.facts, stated, remedy=remedy)


def choose_replicates(
    data: LabelledImages,
    models: Mapping[str, Sequence[ModelCheckpoint]],
    params: ModelExportParams,
) -> Iterator[tuple[str, int, float, bool]]:
    """Choose the best replicate of each role on validation, or all of them.

    Yields:
        Role, replicate, validation accuracy, and whether it is the best of its role.
    """
    for role, checkpoints in models.items():
        accuracies = [validation_accuracy(checkpoint, data) for checkpoint in checkpoints]
        best = int(np.argmax(accuracies))  # Of equal ones the first.
        for replicate, accuracy in enumerate(accuracies):
            if replicate == best or params.replicates == "all":
                yield role, replicate, accuracy, replicate == best


def validation_accuracy(checkpoint: ModelCheckpoint, data: LabelledImages) -> float:
    """Share of the labelled validation images that a model gets right; NaN without any."""
    ids, labels = data.labelled("validation")
    if len(ids) == 0:
        return float("nan")
    batches = data.images.batches(ids, ON_CPU.batch_size)
    logits = predict_batches(build_classifier(checkpoint), batches, ON_CPU)
    return (logits.argmax(dim=1) == labels).double().mean().item()


def calibration_images(data: LabelledImages, params: ModelExportParams) -> Tensor:
    """Clean images of the transfer set, uint8 [num_rows, channels, height, width].

    As many as asked for, or all if there are fewer: drawn at random, the same for every model.

    Raises:
        ExportError: If there is no transfer set.
    """
    ids = data.ids("transfer")
    if len(ids) == 0:
        raise ExportError("`splits` must have rows of role transfer to calibrate int8 on, got none")
    generator = np.random.default_rng(derive_seed(0, "calibration"))
    drawn = generator.permutation(ids)[: params.num_calibration_rows]
    return data.images.take(np.sort(drawn))
