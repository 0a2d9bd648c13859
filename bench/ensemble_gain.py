"""The share of a ten-member ensemble's gain that one student of the same kind keeps.

    CIFAR10_ROOT=/where/cifar10/lies python -m bench.ensemble_gain cifar10 --seeds 3
    python -m bench.ensemble_gain digits --seeds 10

Everyone learns from the same labels; `cifar10` is the preset `ensemble`. For each seed of split,
members and students, the gains are of test accuracy over students trained on hard labels: of the
ensemble, of students distilled from its geometric mixture, and of students distilled from its
arithmetic one, from the same cache. The temperature is the one of 1, 2 and 4 whose students are
best on validation, chosen with the geometric mixture in each seed. Shares are ratios of means
over the seeds; with many seeds their interval is a bootstrap over seeds.
"""

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from bench.views_against_live import EXPERIMENTS, ingest, training
from kd_pipeline.data.splits import ids_with_role, split_examples, split_fingerprint
from kd_pipeline.labelling.predictor import open_predictor
from kd_pipeline.labelling.soft_targets import label_transfer_set
from kd_pipeline.losses.objective import Objective
from kd_pipeline.models.checkpoint import ModelCheckpoint
from kd_pipeline.models.state_folder import StateFolder
from kd_pipeline.soft_targets.ensemble import Mixing, mix_logits
from kd_pipeline.soft_targets.parts_folder import PartsFolder
from kd_pipeline.training.data import TrainingData
from kd_pipeline.training.settings import TrainingSettings
from kd_pipeline.training.students import train_students
from kd_pipeline.training.teacher_sources import CachedTeacher, Teacher
from kd_pipeline.training.teachers import train_teachers
from kd_pipeline.views import ViewPolicy

NUM_MEMBERS = 10
TEMPERATURES = (1.0, 2.0, 4.0)


@dataclass(frozen=True)
class Setting:
    """One data set; members and students are alike."""

    split: dict[str, Any]
    model: dict[str, Any]
    training: TrainingSettings
    transforms: tuple[dict[str, Any], ...]
    num_views: int
    num_students: int


SETTINGS = {
    "cifar10": Setting(
        split={"test_fraction": 0.2, "fraction": 0.1, "relation": "equal"},
        model={"name": "small_cnn", "arguments": {"channels": [8, 16, 32]}},
        training=training(40, 128, 0.004, "auto"),
        transforms=EXPERIMENTS["cifar10"].transforms,
        num_views=8,
        num_students=3,
    ),
    "digits": Setting(
        split={"test_fraction": 0.3323, "labels_per_class": 10, "relation": "equal"},
        model={"name": "mlp", "arguments": {"hidden": [32]}},
        training=training(300, 64, 0.01, "float32"),
        transforms=(),
        num_views=1,
        num_students=5,
    ),
}


def main() -> None:
    """Run all seeds, print them and the shares."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", choices=SETTINGS)
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    setting, ingested = SETTINGS[given.data], ingest(EXPERIMENTS[given.data].source)
    rows = []
    for seed in range(given.seeds):
        splits = split_examples(
            ingested.examples,
            class_names=ingested.images.class_names,
            seed=seed,
            validation_fraction=0.1,
            **setting.split,
        )
        data = TrainingData(ingested.images, ingested.examples, splits)
        rows.append(_one_seed(setting, data, seed))
        print({name: round(value, 2) for name, value in rows[-1].items()}, flush=True)
    _report(pd.DataFrame(rows))


def _one_seed(setting: Setting, data: TrainingData, seed: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        members, _ = train_teachers(
            data,
            model=setting.model,
            pretrained=None,
            settings=setting.training,
            label_smoothing=0.0,
            transforms=setting.transforms,
            seed=seed,
            num_members=NUM_MEMBERS,
            parameters={},
            states=StateFolder(Path(folder, "members")),
        )
        cache = label_transfer_set(
            members,
            data.images,
            ids_with_role(data.splits, "transfer"),
            parts=PartsFolder(Path(folder, "parts")),
            splits_fingerprint=split_fingerprint(data.splits),
            policy=ViewPolicy(seed, setting.transforms),
            num_views=setting.num_views,
            batch_size=512,
            device="auto",
            precision=setting.training.precision,
        )
        logits = torch.stack([_logits(data, member) for member in members])
        mixed = mix_logits(logits, mixing=Mixing(), temperature=1.0)
        found = {
            "member": float(np.mean([_accuracy(data, one) for one in logits])),
            "ensemble": _accuracy(data, mixed),
        }

        def students(source: Teacher | None, temperature: float) -> list[ModelCheckpoint]:
            return _students(setting, data, source, temperature, seed, Path(folder, "states"))

        found["hard labels"] = _mean_accuracy(data, students(None, 1.0), "test")
        tried = {t: students(CachedTeacher(cache), t) for t in TEMPERATURES}
        best = max(tried, key=lambda t: _mean_accuracy(data, tried[t], "validation"))
        found["geometric"] = _mean_accuracy(data, tried[best], "test")
        arithmetic = students(CachedTeacher(cache, Mixing("arithmetic")), best)
        found["arithmetic"] = _mean_accuracy(data, arithmetic, "test")
        return {**found, "temperature": best}


def _students(
    setting: Setting,
    data: TrainingData,
    teacher: Teacher | None,
    temperature: float,
    seed: int,
    states: Path,
) -> list[ModelCheckpoint]:
    soft = Objective(soft_weight=1.0, temperature=temperature)
    students, _ = train_students(
        data,
        teacher=teacher,
        objective=Objective() if teacher is None else soft,
        model=setting.model,
        settings=setting.training,
        seed=seed,
        num_replicates=setting.num_students,
        policy=ViewPolicy(seed, setting.transforms),
        num_views=setting.num_views,
        parameters={},
        states=StateFolder(states),
    )
    return students


def _logits(data: TrainingData, checkpoint: ModelCheckpoint, role: str = "test") -> torch.Tensor:
    predictor = open_predictor(checkpoint, data.images, batch_size=1024)
    return predictor.logits(ids_with_role(data.splits, role))


def _accuracy(data: TrainingData, logits: torch.Tensor, role: str = "test") -> float:
    labels = data.labels_of(ids_with_role(data.splits, role))
    return 100 * float((logits.argmax(1) == labels).double().mean())


def _mean_accuracy(data: TrainingData, students: list[ModelCheckpoint], role: str) -> float:
    return float(np.mean([_accuracy(data, _logits(data, one, role), role) for one in students]))


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
