"""Teachers: trained from scratch, fine-tuned from pretrained weights, or given."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from kd_pipeline.data.splits import ids_with_role, split_fingerprint
from kd_pipeline.errors import CheckpointError, StaleArtefactError
from kd_pipeline.losses.objective import Objective
from kd_pipeline.models.checkpoint import ModelCheckpoint
from kd_pipeline.models.classifier import Classifier
from kd_pipeline.models.given import ImagesAtHand, class_names_of, match_classes, read_given
from kd_pipeline.models.imported_logits import check_covers, imported_checkpoint, read_logits
from kd_pipeline.models.predict import resolve_device
from kd_pipeline.models.preprocessing import Preprocessing
from kd_pipeline.models.pretrained import (
    adopt_weights,
    declared_normalisation,
    freeze_all_but_last,
    load_weights,
)
from kd_pipeline.models.state_folder import StateFolder
from kd_pipeline.randomness import derive_seed
from kd_pipeline.training.data import TrainingData
from kd_pipeline.training.engine import TrainingPlan
from kd_pipeline.training.rows import TrainingRows
from kd_pipeline.training.settings import TrainingSettings
from kd_pipeline.training.students import train_each, untrained
from kd_pipeline.views import ViewPolicy

HISTORY_COLUMNS = ("replicate", "epoch", "step")
NUM_IMAGES_TRIED = 8
"""A given teacher is tried on so many images before it is used."""

logger = logging.getLogger(__name__)


def train_teachers(
    data: TrainingData,
    *,
    model: Mapping[str, Any],
    pretrained: Mapping[str, Any] | None,
    settings: TrainingSettings,
    label_smoothing: float,
    transforms: Sequence[Mapping[str, Any]],
    seed: int,
    num_members: int,
    parameters: Mapping[str, Any],
    states: StateFolder,
) -> tuple[list[ModelCheckpoint], pd.DataFrame]:
    """Train each member of a teacher on the teacher's examples, with a seed of its own.

    Args:
        data: Images, examples and splits.
        model: `name` and `arguments` of the architecture.
        pretrained: `weights` or `file`, and `trainable_layers`; None starts from scratch.
        settings: How to train.
        label_smoothing: Of the hard labels; a smoothed teacher distils badly above temperature 1.
        transforms: Augmentation, a fresh view in every pass.
        seed: Of all members.
        num_members: More than one makes an ensemble.
        parameters: All settings in force, to be told and kept.
        states: Where interrupted trainings are kept.

    Returns:
        One checkpoint per member, and the history: a row per member and epoch.
    """
    device = resolve_device(settings.device)
    ids = ids_with_role(data.splits, "teacher_train")
    rows = TrainingRows(
        example_ids=torch.as_tensor(ids).to(device),
        pixels_of=data.pixels_of(ids, settings),
        labels=data.labels_of(ids).to(device),
    )
    mixes = ViewPolicy(transforms=tuple(transforms)).mixes
    partners = data.partners(ids, None, settings) if mixes else None
    seeds = [derive_seed(seed, "member", member) for member in range(num_members)]
    plans = [
        TrainingPlan(
            rows=rows,
            validation=data.validation(settings),
            objective=Objective(label_smoothing=label_smoothing),
            settings=settings,
            steps_per_epoch=math.ceil(len(ids) / settings.batch_size),
            seed=own,
            policy=ViewPolicy(derive_seed(own, "views"), tuple(transforms)),
            partners=partners,
            replicate=member,
        )
        for member, own in enumerate(seeds)
    ]
    return train_each(
        plans,
        initial=lambda weights_seed: initial_teacher(data, model, pretrained, seed=weights_seed),
        data=data,
        model=model,
        facts={"parameters": dict(parameters)},
        states=states,
    )


def adopt_given(data: TrainingData, given: Sequence[Mapping[str, Any]]) -> list[ModelCheckpoint]:
    """Take given teachers as they are, with the images' classes in the images' order.

    One that was trained on other images keeps no claim to these: evaluation and report then say
    that they cannot vouch for the test set.

    Args:
        data: What they must suit.
        given: The entries of `teacher.given`; one of MLflow's has what was fetched under `model`.

    Raises:
        ParameterError: If a setting of an entry names nothing usable.
        CheckpointError: If one is not readable or its classes are not the images'.
        DataError: If imported logits are not finite or leave out examples of the transfer set.
        StaleArtefactError: If one was trained on another split of these very images, whose test
            set it may have seen.
    """
    # Of the transfer set: nothing looks at test images before the evaluation.
    shown = ids_with_role(data.splits, "transfer")[:NUM_IMAGES_TRIED]
    images = ImagesAtHand(
        data.images.class_names,
        tuple(data.images.pixels.shape[1:]),
        data.images.take(shown),
    )
    adopted = []
    for position, entry in enumerate(given):
        name = f"teacher.given[{position}]"
        if entry["kind"] == "logits":
            adopted.append(_import_logits(entry, data, images, name))
        else:
            adopted.append(_without_leak(read_given(entry, images, name=name), data, entry, name))
    return adopted


def _import_logits(
    entry: Mapping[str, Any], data: TrainingData, images: ImagesAtHand, name: str
) -> ModelCheckpoint:
    ids, logits, declared = read_logits(Path(entry["file"]), name=name)
    names = class_names_of(entry, declared, images, name=name)
    order = match_classes(names, images.class_names, name=name)
    if logits.shape[1] != len(images.class_names):
        raise CheckpointError(
            f"`{name}` must have the images' classes: {logits.shape[1]} logits where the images "
            f"have {len(images.class_names)} classes"
        )
    checkpoint = imported_checkpoint(
        ids,
        logits if order is None else logits[:, list(order)],
        class_names=images.class_names,
        shape=images.shape,
        images_fingerprint=data.images.fingerprint,
        facts={"given": {"kind": "logits", "file": entry["file"]}},
    )
    check_covers(checkpoint, ids_with_role(data.splits, "transfer"), what="the transfer set")
    return checkpoint


def _without_leak(
    checkpoint: ModelCheckpoint, data: TrainingData, entry: Mapping[str, Any], name: str
) -> ModelCheckpoint:
    facts = dict(checkpoint.facts)
    if facts.get("images") != data.images.fingerprint:
        facts = {k: v for k, v in facts.items() if k not in ("images", "splits")}
    elif facts.get("splits") != split_fingerprint(data.splits):
        raise StaleArtefactError(
            f"`{name}` {entry.get('folder')} was trained on another split of these very images and "
            "may have seen their test set: train it anew, or set `transfer_split` as it was"
        )
    return replace(checkpoint, facts={"given": entry.get("folder"), **facts})


def initial_teacher(
    data: TrainingData, model: Mapping[str, Any], pretrained: Mapping[str, Any] | None, *, seed: int
) -> Classifier:
    """A member before its training: from scratch, or from pretrained weights."""
    measured = data.measure(ids_with_role(data.splits, "teacher_train"))
    if pretrained is None:
        return untrained(data, model, measured)(seed)
    weights = load_weights(model["name"], weights=pretrained["weights"], file=pretrained["file"])
    mean, std = weights.normalisation or declared_normalisation(model["name"]) or (None, None)
    if mean is not None and std is not None:
        measured = Preprocessing((len(mean), *measured.shape[1:]), mean, std)
    classifier = untrained(data, model, measured)(seed)
    same_classes = weights.class_names == data.images.class_names
    fresh = adopt_weights(classifier.network, weights.state, same_classes=same_classes)
    if fresh:
        logger.info("pretrained weights adopted; the head starts afresh: %s", ", ".join(fresh))
    if pretrained["trainable_layers"] is not None:
        freeze_all_but_last(classifier.network, pretrained["trainable_layers"])
    return classifier
