"""The share of a ten-member ensemble's gain that one student of the same kind keeps.

    CIFAR10_ROOT=/where/cifar10/lies python -m bench.ensemble_gain cifar10 --seeds 3
    python -m bench.ensemble_gain digits --seeds 10
    FASHION_MNIST_ROOT=/where/it/lies python -m bench.ensemble_gain fashion_mnist --seeds 5

All models learn from the same labels; `cifar10` is the preset `ensemble`. On `fashion_mnist`, 100
labels a class, distilled students are shown 27,000 images, most of them without a label. For each
seed of split, members and students, the gains are of test accuracy over students trained on hard
labels: of the ensemble, of students distilled from its geometric average, and of students distilled
from its arithmetic one, from the same cache. The temperature is that whose students are best on
validation (of 1, 2 and 4; 1 and 4 on `fashion_mnist`), chosen with the geometric average in each
seed. Shares are ratios of means over the seeds; with many seeds their interval is a bootstrap over
seeds.
"""

import argparse
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch

from bench.experiment import SHIFT_AND_FLIP, Experiment, Seed, cnn, training
from kd_pipeline.models.checkpoint import ModelCheckpoint
from kd_pipeline.models.settings import Model
from kd_pipeline.soft_targets.ensemble import average_logits
from kd_pipeline.soft_targets.settings import SoftTargetsParams
from kd_pipeline.training.settings import StudentParams, TeacherParams, Training

NUM_MEMBERS = 10


def _experiment(
    split: dict[str, Any], transforms: list[dict[str, Any]], num_views: int, num_students: int,
    *, model: Model, training: Training, of_members: Training | None = None,
    temperatures: tuple[float, ...] = (1.0, 2.0, 4.0),
) -> Experiment:  # fmt: skip
    """Members and students are of one kind; with other images, members train in their own way."""
    members: dict[str, Any] = {"model": model, "training": of_members or training}
    return Experiment(
        split={"transfer": {"relation": "equal"}} | split,
        teacher=TeacherParams(num_members=NUM_MEMBERS, transforms=transforms, **members),
        student=StudentParams(num_replicates=num_students, model=model, training=training),
        num_views=(num_views,),
        temperatures=temperatures,
    )


EXPERIMENTS = {
    "cifar10": _experiment(
        split={"teacher": {"fraction": 0.1}},
        transforms=SHIFT_AND_FLIP,
        num_views=8,
        num_students=3,
        model=cnn(8, 16, 32),
        training=training(40, 128, 0.004, "auto"),
    ),
    "digits": _experiment(
        split={"test_fraction": 0.3323, "teacher": {"labels_per_class": 10}},
        transforms=[],
        num_views=1,
        num_students=5,
        model=Model(name="mlp", arguments={"hidden": [32]}),
        training=training(300, 64, 0.01, "float32"),
    ),
    "fashion_mnist": _experiment(
        split={
            "teacher": {"labels_per_class": 100},
            "transfer": {"relation": "overlapping", "fraction": 0.5},
        },
        transforms=[{"name": "shift", "max_pixels": 2}, {"name": "horizontal_flip"}],
        num_views=8,
        num_students=1,
        model=cnn(8, 16, 32),
        training=training(20, 128, 0.004, "auto"),
        of_members=training(270, 64, 0.004, "auto"),  # As many steps as the students.
        temperatures=(1.0, 4.0),
    ),
}


def main() -> None:
    """Run all seeds, print them and the shares."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", choices=EXPERIMENTS)
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    rows = []
    for seed in EXPERIMENTS[given.data].seeds(given.data, given.seeds):
        rows.append(_one_seed(seed))
        print({name: round(value, 2) for name, value in rows[-1].items()}, flush=True)
    _report(pd.DataFrame(rows))


def _one_seed(seed: Seed) -> dict[str, float]:
    (num_views,) = seed.experiment.num_views
    members = seed.train_teacher()
    teacher = seed.cache(members, num_views)
    logits = torch.stack([seed.logits(member) for member in members])
    average = average_logits(logits, SoftTargetsParams(), temperature=1.0)
    found = {
        "member": float(np.mean([seed.accuracy(one) for one in logits])),
        "ensemble": seed.accuracy(average),
        "hard labels": _mean_accuracy(seed, seed.students(None, num_views)),
    }
    tried = {
        temperature: seed.students(teacher, num_views, temperature=temperature)
        for temperature in seed.experiment.temperatures
    }
    best = max(
        tried, key=lambda temperature: _mean_accuracy(seed, tried[temperature], "validation")
    )
    found["geometric"] = _mean_accuracy(seed, tried[best])
    averaged = replace(teacher, params=SoftTargetsParams(ensemble_average="arithmetic"))
    arithmetic = seed.students(averaged, num_views, temperature=best)
    found["arithmetic"] = _mean_accuracy(seed, arithmetic)
    return {**found, "temperature": best}


def _mean_accuracy(seed: Seed, students: list[ModelCheckpoint], role: str = "test") -> float:
    return float(np.mean([seed.accuracy(seed.logits(one, role), role) for one in students]))


def _report(rows: pd.DataFrame) -> None:
    print("\n" + rows.describe().loc[["mean", "std"]].round(2).to_string())
    columns = [name for name in rows.columns if name != "temperature"]
    gains = rows[columns].sub(rows["hard labels"], axis=0).to_numpy()
    rng = np.random.default_rng(0)
    drawn = gains[rng.integers(0, len(gains), (10_000, len(gains)))].mean(axis=1)
    whole = columns.index("ensemble")
    for name in ("geometric", "arithmetic"):
        at = columns.index(name)
        share = gains[:, at].mean() / gains[:, whole].mean()
        # A draw in which the ensemble gains nothing has no share: it counts as unbounded.
        with np.errstate(divide="ignore", invalid="ignore"):
            shares = np.nan_to_num(drawn[:, at] / drawn[:, whole], nan=np.inf)
        low, high = np.percentile(shares, [2.5, 97.5], method="nearest")
        print(f"{name}: keeps {share:.0%} of the gain, 95 % bootstrap {low:.0%} to {high:.0%}")


if __name__ == "__main__":
    main()
