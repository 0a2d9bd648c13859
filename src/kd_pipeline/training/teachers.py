"""Teachers: trained from scratch, fine-tuned from pretrained weights, or given."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import pandas as pd

from kd_pipeline.data.dataset import LabelledImages
from kd_pipeline.errors import StaleArtefactError
from kd_pipeline.losses.settings import ObjectiveParams
from kd_pipeline.memory import MemoryBudget, open_budget
from kd_pipeline.models.checkpoint import DATA_FACTS, ModelCheckpoint
from kd_pipeline.models.given import FetchedModel, ImagesAtHand, read_given
from kd_pipeline.models.settings import Given, Model
from kd_pipeline.models.state_folder import StateFolder
from kd_pipeline.randomness import derive_seed
from kd_pipeline.training.engine import TrainingPlan
from kd_pipeline.training.initial import initial_model
from kd_pipeline.training.rows import make_rows
from kd_pipeline.training.settings import TeacherParams, Training
from kd_pipeline.training.trainer import train_each
from kd_pipeline.views import ViewPolicy

HISTORY_COLUMNS = ("replicate", "epoch", "step")
NUM_IMAGES_TRIED = 8
"""A given teacher is tried on so many images before it is used."""


def train_teachers(
    data: LabelledImages,
    params: TeacherParams,
    states: StateFolder,
    budget: MemoryBudget | None = None,
) -> tuple[list[ModelCheckpoint], pd.DataFrame]:
    """Train each member of a teacher on the teacher's examples, with a seed of its own.

    Pixels are held in memory while they fit the `budget`; None is `auto`.

    Returns:
        One checkpoint per member, and the history: a row per member and epoch.
    """
    # Null only where teachers are given.
    model, training = cast(Model, params.model), cast(Training, params.training)
    ids = data.ids("teacher_train")
    budget = budget or open_budget()
    rows = make_rows(data, ids, training, budget)
    validation = make_rows(data, data.ids("validation"), training, budget)
    seeds = [derive_seed(params.seed, "member", member) for member in range(params.num_members)]
    plans = [
        TrainingPlan(
            rows=rows,
            validation=validation,
            objective=ObjectiveParams(label_smoothing=params.label_smoothing),
            training=training,
            steps_per_epoch=math.ceil(len(ids) / training.batch_size),
            seed=own,
            policy=ViewPolicy(derive_seed(own, "views"), params.transforms),
            partners=rows,
            replicate=member,
        )
        for member, own in enumerate(seeds)
    ]
    return train_each(
        plans,
        initial=initial_model(data, model, params.pretrained, ids),
        data=data,
        model=model,
        facts={"parameters": params.model_dump(mode="json")},
        states=states,
    )


def adopt_given(
    data: LabelledImages, given: Sequence[Given], fetched: Sequence[FetchedModel | None]
) -> list[ModelCheckpoint]:
    """Take given teachers as they are, with the images' classes in the images' order.

    One that was trained on other images keeps no claim to these: evaluation and report then state
    that whether it was trained on the test set cannot be verified.

    `fetched` has, for each entry of `given`, what MLflow had for it, and None for other kinds.

    Raises:
        ParameterError: If a setting of an entry names nothing usable.
        CheckpointError: If one is not readable or its classes are not the images'.
        StaleArtefactError: If one was trained on another split of these very images, whose test
            set it may have been trained on.
    """
    # Of the transfer set: no test image is read before the evaluation.
    shown = data.images.take(data.ids("transfer")[:NUM_IMAGES_TRIED])
    shape = tuple(data.images.pixels.shape[1:])
    images = ImagesAtHand(data.images.class_names, shape, shown)
    adopted = []
    for at, entry in enumerate(given):
        name = f"teacher.given[{at}]"
        checkpoint = read_given(entry, images, name=name, fetched=fetched[at])
        adopted.append(_without_leak(checkpoint, data.labelled_provenance, f"`{name}` ({entry})"))
    return adopted


def _without_leak(
    checkpoint: ModelCheckpoint, at_hand: Mapping[str, Any], name: str
) -> ModelCheckpoint:
    facts = checkpoint.facts
    if facts.get("images") != at_hand["images"]:
        kept = {k: v for k, v in facts.items() if k not in DATA_FACTS}
        return replace(checkpoint, facts=kept)
    if facts.get("splits") != at_hand["splits"]:
        raise StaleArtefactError(
            f"{name} was trained on another split of these very images and may have been "
            "trained on their test set: train it anew, or set `transfer_split` as it was"
        )
    if facts.get("labels") != at_hand["labels"]:
        raise StaleArtefactError(
            f"{name} was trained on other labels of these very images: train it anew"
        )
    return checkpoint
