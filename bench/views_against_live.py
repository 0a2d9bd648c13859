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
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from bench.experiment import SHIFT_AND_FLIP, Experiment, Seed, cnn, training
from kd_pipeline.models.checkpoint import ModelCheckpoint
from kd_pipeline.models.settings import Model
from kd_pipeline.soft_targets.settings import SoftTargetsParams
from kd_pipeline.training.settings import StudentParams, TeacherParams
from kd_pipeline.training.teacher_sources import LiveTeacher

LIVE = "live"
AFFINE = {"name": "affine", "max_degrees": 8.0, "max_shift_pixels": 0.6, "max_scale": 1.08}

EXPERIMENTS = {
    # 100 labels for the teacher, 981 transfer images, 60 passes over them.
    "digits": Experiment(
        split={"test_fraction": 0.3323, "teacher": {"labels_per_class": 10}},
        teacher=TeacherParams(
            model=cnn(32, 64, 80),
            transforms=[AFFINE],
            training=training(150, 50, 0.003, "float32"),
        ),
        student=StudentParams(
            model=Model(name="mlp", arguments={"hidden": [32]}),
            num_replicates=1,
            training=training(60, 64, 0.01, "float32"),
        ),
        num_views=(1, 2, 4, 8, 16, 32),
        temperatures=(1.0,),
    ),
    # 45,000 labels for the teacher, a tenth of the images as transfer set. An epoch has the steps
    # of all rows that are open to students: four are 40 passes over the transfer set.
    "cifar10": Experiment(
        split={"teacher": {"fraction": 1.0}, "transfer": {"fraction": 0.1}},
        teacher=TeacherParams(
            model=cnn(24, 48, 96),
            transforms=SHIFT_AND_FLIP,
            training=training(5, 128, 0.003, "auto"),
        ),
        student=StudentParams(
            model=cnn(8, 16, 32), num_replicates=1, training=training(4, 128, 0.004, "auto")
        ),
        num_views=(1, 2, 4, 8, 16),
        temperatures=(4.0,),
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
    for seed in EXPERIMENTS[given.data].seeds(given.data, given.seeds):
        for row in _one_seed(seed):
            rows.append({"seed": seed.seed, **row})
            print(json.dumps(rows[-1]), flush=True)
            if given.csv:
                pd.DataFrame(rows).to_csv(given.csv, index=False)
    print(summarise(pd.DataFrame(rows)).round(3).to_string(index=False))


def _one_seed(seed: Seed) -> Iterator[dict[str, Any]]:
    (temperature,), student = seed.experiment.temperatures, seed.experiment.student
    members = seed.train_teacher()
    yield {"views": "teacher", **_measure(seed, members[0]), "seconds": 0.0}
    live = LiveTeacher(members, SoftTargetsParams(), precision=student.training.precision)
    for num_views in (*seed.experiment.num_views, None):
        started = time.perf_counter()
        teacher = live if num_views is None else seed.cache(members, num_views)
        labelled = time.perf_counter()
        (checkpoint,) = seed.students(teacher, num_views, temperature=temperature)
        yield {
            "views": LIVE if num_views is None else str(num_views),
            **_measure(seed, checkpoint),
            "seconds": round(time.perf_counter() - labelled, 1),
            "labelling_seconds": round(labelled - started, 1),
        }


def _measure(seed: Seed, checkpoint: ModelCheckpoint) -> dict[str, float]:
    logits = seed.logits(checkpoint)
    nll = -logits.log_softmax(1).gather(1, seed.labels()[:, None]).mean()
    return {"accuracy": round(seed.accuracy(logits), 3), "nll": round(float(nll), 4)}


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
