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
from kd_pipeline.data.views import ViewPolicy
from kd_pipeline.errors import StaleArtefactError
from kd_pipeline.losses.objective import Objective
from kd_pipeline.models.checkpoint import (
    ModelCheckpoint,
    check_classes,
    read_checkpoint,
)
from kd_pipeline.models.classifier import Classifier
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
from kd_pipeline.training.engine import TrainingPlan
from kd_pipeline.training.rows import TrainingRows, pixel_reader
from kd_pipeline.training.settings import TrainingSettings
from kd_pipeline.training.students import TrainingData, train_each, untrained

HISTORY_COLUMNS = ("replicate", "epoch", "step")

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
        pixels_of=pixel_reader(data.images, ids, device=device),
        labels=data.labels_of(ids).to(device),
    )
    seeds = [derive_seed(seed, "member", member) for member in range(num_members)]
    plans = [
        TrainingPlan(
            rows=rows,
            validation=data.validation(device),
            objective=Objective(label_smoothing=label_smoothing),
            settings=settings,
            steps_per_epoch=math.ceil(len(ids) / settings.batch_size),
            seed=own,
            policy=ViewPolicy(derive_seed(own, "views"), tuple(transforms)),
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


def adopt_checkpoints(data: TrainingData, folders: Sequence[str]) -> list[ModelCheckpoint]:
    """Take given checkpoints as they are.

    One that was trained on other images keeps no claim to these: evaluation and report then say
    that they cannot vouch for the test set.

    Raises:
        CheckpointError: If one is not readable or its classes are not the images'.
        StaleArtefactError: If one was trained on another split of these very images, whose test
            set it may have seen.
    """
    adopted = []
    for folder in folders:
        checkpoint = read_checkpoint(Path(folder))
        check_classes(checkpoint, data.images.class_names, name="teacher.checkpoints")
        facts = dict(checkpoint.facts)
        if facts.get("images") != data.images.fingerprint:
            facts = {k: v for k, v in facts.items() if k not in ("images", "splits")}
        elif facts.get("splits") != split_fingerprint(data.splits):
            raise StaleArtefactError(
                f"`teacher.checkpoints` {folder} was trained on another split of these very "
                "images and may have seen their test set: train it anew, or set `transfer_split` "
                "as it was"
            )
        adopted.append(replace(checkpoint, facts={**facts, "given": str(folder)}))
    return adopted


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
        if measured.shape[0] == 1:  # The network repeats a grey channel after normalising it.
            mean, std = (sum(mean) / len(mean),), (sum(std) / len(std),)
        measured = Preprocessing(measured.shape, tuple(mean), tuple(std))
    classifier = untrained(data, model, measured)(seed)
    same_classes = weights.class_names == data.images.class_names
    fresh = adopt_weights(classifier.network, weights.state, same_classes=same_classes)
    if fresh:
        logger.info("pretrained weights adopted; the head starts afresh: %s", ", ".join(fresh))
    if pretrained["trainable_layers"] is not None:
        freeze_all_but_last(classifier.network, pretrained["trainable_layers"])
    return classifier
