"""A comparison of predictions that are drawn at random, and a small test set with checkpoints."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest

from kd_pipeline.data.dataset import LabelledImages
from kd_pipeline.data.images import ImageSet
from kd_pipeline.evaluation.comparison import compare
from kd_pipeline.evaluation.settings import EvaluationParams
from kd_pipeline.models.checkpoint import ModelCheckpoint, build_untrained, snapshot
from kd_pipeline.models.preprocessing import Preprocessing
from kd_pipeline.models.settings import Model

ARMS = ("student_kd", "student_baseline", "student_smoothed", "student_pseudo")
FROM_LABELS = ("student_baseline", "student_smoothed")
DEFAULT = {
    "teacher": 0.99,
    "student_kd": 0.95,
    "student_baseline": 0.90,
    "student_smoothed": 0.88,
    "student_pseudo": 0.95,
}


class Result(NamedTuple):
    predictions: pd.DataFrame
    metrics: pd.DataFrame
    comparison: dict[str, Any]
    class_names: tuple[str, ...]


def draw_result(
    accuracy: Mapping[str, float] = DEFAULT,
    *,
    num_replicates: int = 5,
    num_examples: int = 600,
    num_classes: int = 10,
    confidence_level: float = 0.95,
    seed: int = 0,
    data_known: bool = True,
    learnt_from: Mapping[str, str] | None = None,
    calibrated: bool = True,
) -> Result:
    """Roles with about these accuracies; difficulty of examples is shared by all roles.

    Arms learn from the teacher but the two that have none, and those of `learnt_from`.
    """
    sources = dict.fromkeys(accuracy, "teacher") | dict.fromkeys(FROM_LABELS, "labels")
    sources |= {"teacher": None, **(learnt_from or {})}
    generator = np.random.default_rng(seed)
    labels = np.arange(num_examples) % num_classes
    difficulty = generator.random(num_examples)
    tables, rows = [], []
    for role, share in accuracy.items():
        for replicate in range(1 if role == "teacher" else num_replicates):
            blur = difficulty * 0.8 + 0.2 * generator.random(num_examples)
            right = blur < np.quantile(blur, share + generator.normal(0, 0.003))
            wrong = (labels + 1 + generator.integers(num_classes - 1, size=num_examples)) % (
                num_classes
            )
            confidence = np.clip(
                1 - 0.6 * blur**3 + generator.normal(0, 0.03, num_examples), 0.2, 1
            )
            tables.append(
                pd.DataFrame(
                    {
                        "role": role,
                        "replicate": replicate,
                        "example_id": np.arange(num_examples),
                        "label": labels,
                        "predicted": np.where(right, labels, wrong),
                        "confidence": confidence,
                        "nll": -np.log(np.where(right, confidence, (1.01 - confidence) / 2)),
                        "in_top5": True,
                    }
                )
            )
            if calibrated:
                # As far below the NLL as the confidence is off.
                tables[-1]["nll_calibrated"] = tables[-1]["nll"] - abs(
                    confidence.mean() - right.mean()
                )
            rows.append(
                {
                    "role": role,
                    "replicate": replicate,
                    "learnt_from": sources[role],
                    "checkpoint": f"{len(rows):016x}",
                    "data_known": data_known,
                    "test/accuracy": right.mean(),
                    "test/top5_accuracy": 1.0,
                    "test/errors": int((~right).sum()),
                    "test/nll": tables[-1]["nll"].mean(),
                    "test/ece": abs(confidence.mean() - right.mean()),
                    "test/nll_calibrated": tables[-1]["nll_calibrated"].mean()
                    if calibrated
                    else np.nan,
                    "test/ece_calibrated": 0.01 if calibrated else np.nan,
                    "calibration/temperature": 1.5 if calibrated else np.nan,
                    "calibration/examples": 100 if calibrated else np.nan,
                    "test/teacher_agreement": 1.0 if role == "teacher" else right.mean(),
                    "model/parameters": 66_000 if role == "teacher" else 2_410,
                    "model/macs": 65_000 if role == "teacher" else 2_368,
                    "architecture": 'mlp {"hidden": [32]}',
                    "cost/train_seconds": 40.0 if role == "teacher" else 2.0 + replicate,
                    "cost/caching_seconds": 1.5 if sources[role] == "teacher" else 0.0,
                }
            )
    predictions, metrics = pd.concat(tables, ignore_index=True), pd.DataFrame(rows)
    params = EvaluationParams(num_bootstrap_samples=500, confidence_level=confidence_level)
    comparison = compare(
        predictions, metrics, params, {"group": "g", "env": "base"}, num_training_examples=100
    )
    return Result(
        predictions, metrics, comparison, tuple(f"class {index}" for index in range(num_classes))
    )


@pytest.fixture
def draw() -> Callable[..., Result]:
    return draw_result


@pytest.fixture(scope="session")
def result() -> Result:
    return draw_result()


NUM_IMAGES = 40
CLASS_NAMES = ("a", "b", "c")
COSTS = {
    "model/parameters": 51,
    "model/macs": 48,
    "model/size_bytes": 204,
    "cost/train_seconds": 0.5,
}


class Stage(NamedTuple):
    data: LabelledImages
    teacher: list[ModelCheckpoint]
    students: dict[str, list[ModelCheckpoint]]


def make_checkpoint(seed: int, **facts: Any) -> ModelCheckpoint:
    model, preprocessing = (
        Model(name="mlp", arguments={"hidden": []}),
        Preprocessing((1, 4, 4), (0.5,), (0.25,)),
    )
    classifier = build_untrained(model, preprocessing, num_classes=len(CLASS_NAMES), seed=seed)
    return snapshot(classifier, model, class_names=CLASS_NAMES, facts=facts)


def make_data() -> LabelledImages:
    """Ids with gaps and test rows in between: nothing may rest on positions."""
    generator = np.random.default_rng(0)
    ids = np.arange(NUM_IMAGES, dtype=np.int64) * 3 + 7
    pixels = generator.integers(0, 256, size=(NUM_IMAGES, 1, 4, 4), dtype=np.uint8)
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
    return LabelledImages(ImageSet(ids, pixels, CLASS_NAMES), examples, splits)


def make_stage(num_replicates: int = 2, num_members: int = 1) -> Stage:
    """An untrained teacher, two students taught by labels and by it."""
    data = make_data()
    origin = {k: v for k, v in data.labelled_provenance.items() if k != "class_names"} | {
        "costs": COSTS
    }
    teacher = [make_checkpoint(100 + member, **origin) for member in range(num_members)]
    sources = {"student_baseline": [], "student_kd": [one.fingerprint for one in teacher]}
    students = {
        arm: [
            make_checkpoint(10 * index + replicate, teacher=source, replicate=replicate, **origin)
            for replicate in range(num_replicates)
        ]
        for index, (arm, source) in enumerate(sources.items())
    }
    return Stage(data, teacher, students)


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


@pytest.fixture
def chain(stage: Stage) -> Stage:
    """A student between the teacher and the last one, with one replicate."""
    kd = stage.students["student_kd"]
    between = [with_facts(make_checkpoint(50), **kd[0].facts)]
    last = [with_facts(one, teacher=[between[0].fingerprint]) for one in kd]
    baseline = stage.students["student_baseline"]
    students = {"assistant": between, "student_assisted": last, "student_baseline": baseline}
    return stage._replace(students=students)
