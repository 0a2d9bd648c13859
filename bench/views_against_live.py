"""Accuracy from 1, 2, 4, 8 ... cached views against a live teacher, at equal steps.

    python -m bench.views_against_live digits --seeds 10
    CIFAR10_ROOT=/where/cifar10/lies python -m bench.views_against_live cifar10 --seeds 3

For each seed one teacher labels V views of the transfer set, and a student replays them; a live
teacher labels a fresh view in every pass instead. All students of a seed start from the same
weights and take the same number of steps over the same examples in the same order. Every
condition is read once on the test set, at the end; nothing is chosen by it. Differences are
paired by seed, with a 95 % t interval over the seeds.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from kd_pipeline.data.ingest import IngestedImages, ingest_images
from kd_pipeline.data.splits import ids_with_role, split_examples, split_fingerprint
from kd_pipeline.labelling.predictor import open_predictor
from kd_pipeline.labelling.soft_targets import label_transfer_set
from kd_pipeline.losses.objective import Objective
from kd_pipeline.models.checkpoint import ModelCheckpoint
from kd_pipeline.models.state_folder import StateFolder
from kd_pipeline.soft_targets.parts_folder import PartsFolder
from kd_pipeline.training.data import TrainingData
from kd_pipeline.training.settings import TrainingSettings
from kd_pipeline.training.students import train_students
from kd_pipeline.training.teacher_sources import CachedTeacher, LiveTeacher, Teacher
from kd_pipeline.training.teachers import train_teachers
from kd_pipeline.views import ViewPolicy

LIVE = "live"


@dataclass(frozen=True)
class Experiment:
    """One data set with its teacher, student and views."""

    source: dict[str, Any]
    split: dict[str, Any]
    transforms: tuple[dict[str, Any], ...]
    teacher: dict[str, Any]
    teacher_training: TrainingSettings
    student: dict[str, Any]
    student_training: TrainingSettings
    temperature: float
    num_views: tuple[int, ...]


def ingest(source: dict[str, Any]) -> IngestedImages:
    """Images and examples of a source, at their own size."""
    return ingest_images(
        source,
        image_size=None,
        colour="auto",
        max_rejected_share=0.01,
        max_pixels_per_image=10**8,
        memory_budget_mb=4096,
    )


def training(epochs: int, batch_size: int, lr: float, precision: str) -> TrainingSettings:
    """AdamW under a cosine; looks at validation once, at the end."""
    return TrainingSettings(
        num_epochs=epochs,
        batch_size=batch_size,
        optimiser={"name": "AdamW", "arguments": {"lr": lr, "weight_decay": 0.01}},
        schedule={"name": "cosine", "arguments": {}, "warmup_fraction": 0.05},
        evaluate_every=epochs,
        checkpoint_every=epochs,
        device="auto",
        precision=precision,
    )


def _cnn(*channels: int) -> dict[str, Any]:
    return {"name": "small_cnn", "arguments": {"channels": list(channels)}}


EXPERIMENTS = {
    # 100 labels for the teacher, 981 transfer images, 60 passes over them.
    "digits": Experiment(
        source={"kind": "digits"},
        split={"test_fraction": 0.3323, "labels_per_class": 10, "relation": "overlapping"},
        transforms=(
            {"name": "affine", "max_degrees": 8.0, "max_shift_pixels": 0.6, "max_scale": 1.08},
        ),
        teacher=_cnn(32, 64, 80),
        teacher_training=training(150, 50, 0.003, "float32"),
        student={"name": "mlp", "arguments": {"hidden": [32]}},
        student_training=training(60, 64, 0.01, "float32"),
        temperature=1.0,
        num_views=(1, 2, 4, 8, 16, 32),
    ),
    # 45,000 labels for the teacher, a tenth of the images as transfer set. An epoch has the steps
    # of all rows that are open to students: four are 40 passes over the transfer set.
    "cifar10": Experiment(
        source={"kind": "image_folder", "root": os.environ.get("CIFAR10_ROOT", "")},
        split={
            "test_fraction": 0.2,
            "fraction": 1.0,
            "relation": "overlapping",
            "transfer_fraction": 0.1,
        },
        transforms=(
            {"name": "shift", "max_pixels": 4, "padding": "reflect"},
            {"name": "horizontal_flip", "probability": 0.5},
        ),
        teacher=_cnn(24, 48, 96),
        teacher_training=training(5, 128, 0.003, "auto"),
        student=_cnn(8, 16, 32),
        student_training=training(4, 128, 0.004, "auto"),
        temperature=4.0,
        num_views=(1, 2, 4, 8, 16),
    ),
}


def main() -> None:
    """Run one experiment, print the table, and keep every figure in a CSV file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", choices=EXPERIMENTS)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--csv", type=Path, help="where to keep one row per seed and condition")
    given = parser.parse_args()
    rows = []
    for row in _run(EXPERIMENTS[given.data], given.seeds):
        rows.append(row)
        print(json.dumps(row), flush=True)
        if given.csv:
            pd.DataFrame(rows).to_csv(given.csv, index=False)
    print(summarise(pd.DataFrame(rows)).round(3).to_string(index=False))


def _run(experiment: Experiment, num_seeds: int) -> Iterator[dict[str, Any]]:
    ingested = ingest(experiment.source)
    for seed in range(num_seeds):
        splits = split_examples(
            ingested.examples,
            class_names=ingested.images.class_names,
            seed=seed,
            validation_fraction=0.1,
            **experiment.split,
        )
        yield from _one_seed(
            experiment, TrainingData(ingested.images, ingested.examples, splits), seed
        )


def _one_seed(experiment: Experiment, data: TrainingData, seed: int) -> Iterator[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        teacher, _ = train_teachers(
            data,
            model=experiment.teacher,
            pretrained=None,
            settings=experiment.teacher_training,
            label_smoothing=0.0,
            transforms=experiment.transforms,
            seed=seed,
            num_members=1,
            parameters={},
            states=StateFolder(Path(folder, "teacher")),
        )
        yield {"seed": seed, "views": "teacher", **_measure(data, teacher[0]), "seconds": 0.0}
        for num_views in (*experiment.num_views, None):
            started = time.perf_counter()
            source = _source(experiment, data, teacher, num_views, seed, Path(folder, "cache"))
            labelled = time.perf_counter()
            student = _student(experiment, data, source, num_views, seed, Path(folder, "states"))
            yield {
                "seed": seed,
                "views": LIVE if num_views is None else str(num_views),
                **_measure(data, student),
                "seconds": round(time.perf_counter() - labelled, 1),
                "labelling_seconds": round(labelled - started, 1),
            }


def _source(
    experiment: Experiment,
    data: TrainingData,
    teacher: list[ModelCheckpoint],
    num_views: int | None,
    seed: int,
    folder: Path,
) -> Teacher:
    if num_views is None:
        return LiveTeacher(teacher, precision=experiment.student_training.precision)
    cache = label_transfer_set(
        teacher,
        data.images,
        ids_with_role(data.splits, "transfer"),
        parts=PartsFolder(folder / str(num_views)),
        splits_fingerprint=split_fingerprint(data.splits),
        policy=ViewPolicy(seed, experiment.transforms),
        num_views=num_views,
        batch_size=512,
        device="auto",
        precision=experiment.student_training.precision,
    )
    return CachedTeacher(cache)


def _student(
    experiment: Experiment,
    data: TrainingData,
    teacher: Teacher,
    num_views: int | None,
    seed: int,
    states: Path,
) -> ModelCheckpoint:
    checkpoints, _ = train_students(
        data,
        teacher=teacher,
        objective=Objective(soft_weight=1.0, temperature=experiment.temperature),
        model=experiment.student,
        settings=experiment.student_training,
        seed=seed,
        num_replicates=1,
        policy=ViewPolicy(seed, experiment.transforms),
        num_views=num_views,
        parameters={},
        states=StateFolder(states),
    )
    return checkpoints[0]


def _measure(data: TrainingData, checkpoint: ModelCheckpoint) -> dict[str, float]:
    ids = ids_with_role(data.splits, "test")
    logits = open_predictor(checkpoint, data.images, batch_size=1024).logits(ids)
    labels = data.labels_of(ids)
    nll = -logits.log_softmax(1).gather(1, labels[:, None]).mean()
    right = (logits.argmax(1) == labels).double().mean()
    return {"accuracy": round(100 * float(right), 3), "nll": round(float(nll), 4)}


def summarise(rows: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds, and each condition's difference from the live teacher, paired by seed.

    Args:
        rows: Columns seed, views, accuracy in percent, nll in nats.
    """
    accuracy = rows.pivot(index="seed", columns="views", values="accuracy")
    nll = rows.pivot(index="seed", columns="views", values="nll")
    order = list(dict.fromkeys(rows["views"]))
    return pd.DataFrame([_line(accuracy, nll, views) for views in order])


def _line(accuracy: pd.DataFrame, nll: pd.DataFrame, views: str) -> Mapping[str, Any]:
    line: dict[str, Any] = {
        "views": views,
        "accuracy %": accuracy[views].mean(),
        "NLL": nll[views].mean(),
    }
    if views not in (LIVE, "teacher"):
        difference = (accuracy[views] - accuracy[LIVE]).to_numpy()
        half = stats.t.ppf(0.975, len(difference) - 1) * stats.sem(difference)
        line["minus live, points"] = difference.mean()
        line["95 % interval"] = (
            f"{difference.mean() - half:+.2f} to {difference.mean() + half:+.2f}"
        )
        line["below live"] = f"{int(np.sum(difference < 0))} of {len(difference)}"
    return line


if __name__ == "__main__":
    main()
