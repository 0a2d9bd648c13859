"""A small test set, an untrained teacher and untrained students, as a run would hand them over."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest

from kd_pipeline.data.images import ImageSet
from kd_pipeline.data.splits import split_fingerprint
from kd_pipeline.models.checkpoint import ModelCheckpoint, build_untrained, snapshot
from kd_pipeline.models.preprocessing import Preprocessing

NUM_IMAGES = 40
CLASS_NAMES = ("a", "b", "c")
SHAPE = (1, 4, 4)
COSTS = {
    "model/parameters": 51,
    "model/macs": 48,
    "model/size_bytes": 204,
    "cost/train_seconds": 0.5,
}


class Stage(NamedTuple):
    images: ImageSet
    examples: pd.DataFrame
    splits: pd.DataFrame
    teacher: list[ModelCheckpoint]
    students: dict[str, list[ModelCheckpoint]]


def make_checkpoint(seed: int, **facts: Any) -> ModelCheckpoint:
    preprocessing = Preprocessing(SHAPE, (0.5,), (0.25,))
    arguments = {"hidden": []}
    classifier = build_untrained(
        architecture="mlp",
        arguments=arguments,
        preprocessing=preprocessing,
        num_classes=len(CLASS_NAMES),
        seed=seed,
    )
    return snapshot(
        classifier,
        architecture="mlp",
        arguments=arguments,
        class_names=CLASS_NAMES,
        facts=facts,
    )


def make_stage(num_replicates: int = 2, num_members: int = 1) -> Stage:
    generator = np.random.default_rng(0)
    # Ids with gaps and test rows in between: nothing may rest on positions.
    ids = np.arange(NUM_IMAGES, dtype=np.int64) * 3 + 7
    pixels = generator.integers(0, 256, size=(NUM_IMAGES, *SHAPE), dtype=np.uint8)
    labels = np.arange(NUM_IMAGES) % len(CLASS_NAMES)
    examples = pd.DataFrame(
        {
            "example_id": ids,
            "label": pd.array(labels, dtype="Int64"),
            "class_name": [CLASS_NAMES[label] for label in labels],
        }
    )
    splits = pd.DataFrame(
        {
            "example_id": ids,
            "role": np.where(np.arange(NUM_IMAGES) % 2, "test", "transfer"),
            "use_label": False,
            "for_student": np.arange(NUM_IMAGES) % 2 == 0,
        }
    ).sort_values(["role", "example_id"], ignore_index=True)
    images = ImageSet(ids, pixels, CLASS_NAMES)
    origin = {"images": images.fingerprint, "splits": split_fingerprint(splits), "costs": COSTS}
    teacher = [make_checkpoint(100 + member, **origin) for member in range(num_members)]
    learnt_from = [member.fingerprint for member in teacher]
    students = {
        arm: [
            make_checkpoint(10 * index + replicate, teacher=source, replicate=replicate, **origin)
            for replicate in range(num_replicates)
        ]
        for index, (arm, source) in enumerate(
            {"student_baseline": [], "student_kd": learnt_from}.items()
        )
    }
    return Stage(images, examples, splits, teacher, students)


def with_facts(checkpoint: ModelCheckpoint, **facts: Any) -> ModelCheckpoint:
    return replace(checkpoint, facts={**checkpoint.facts, **facts})


@pytest.fixture
def stage() -> Stage:
    return make_stage()


@pytest.fixture
def staging() -> Callable[..., Stage]:
    return make_stage


@pytest.fixture
def changed() -> Callable[..., ModelCheckpoint]:
    return with_facts
