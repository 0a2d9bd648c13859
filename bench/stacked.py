"""Replicates that train as one network against the same ones trained one after another."""

import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from bench.timing import alternate, seconds
from bench.training import LARGE_MLP, SMALL_MLP, Setting, make_plan
from kd_pipeline.models.checkpoint import count_macs
from kd_pipeline.models.settings import Model
from kd_pipeline.models.state_folder import StateFolder
from kd_pipeline.training.engine import TrainingPlan, train_together
from kd_pipeline.training.stacked import why_alone

TINY_CNN = Model(name="small_cnn", arguments={"channels": [8, 16]})
SMALL_CNN = Model(name="small_cnn", arguments={"channels": [8, 16, 32]})
SETTINGS = (
    (Setting("digits MLP 64-32-10", SMALL_MLP, (1, 8, 8), 64, "float32", 100), 5),
    (Setting("digits MLP 64-32-10", SMALL_MLP, (1, 8, 8), 64, "float32", 50), 20),
    (Setting("small CNN 8-16, 8 px", TINY_CNN, (1, 8, 8), 64, "float32", 20), 5),
    (Setting("small CNN 8-16, 8 px", TINY_CNN, (1, 8, 8), 64, "bfloat16", 20), 5),
    (Setting("small CNN 8-16, 8 px", TINY_CNN, (1, 8, 8), 64, "float32", 10), 20),
    (Setting("small CNN 8-16-32, 32 px", SMALL_CNN, (3, 32, 32), 64, "float32", 5), 5),
    (Setting("small CNN 8-16-32, 32 px", SMALL_CNN, (3, 32, 32), 64, "bfloat16", 5), 5),
    (Setting("MLP 784-800-800-10", LARGE_MLP, (1, 28, 28), 64, "float32", 5), 5),
)


def main(rounds: int) -> dict[str, float]:
    """Measure every setting, print a table, return how many times faster a stack is."""
    print(f"{'student':26}{'precision':>10}{'replicates':>12}{'MACs a step':>14}", end="")
    print(f"{'stacked/alone':>15}  by the rule")
    table = {}
    for setting, count in SETTINGS:
        ratio, row = _row(setting, count, rounds)
        table[f"{setting.name}, {setting.precision}, {count}"] = ratio
        print(row, flush=True)
    return table


def _row(setting: Setting, count: int, rounds: int) -> tuple[float, str]:
    plan = make_plan(setting, soft_weight=0.0)
    plans = [replace(plan, seed=number, replicate=number) for number in range(count)]
    ratio = measure(setting, plans, rounds)
    classifier = setting.classifier()
    macs, reason = count_macs(classifier) * setting.batch_size, why_alone(classifier, plan.training)
    row = f"{setting.name:26}{setting.precision:>10}{count:>12}{macs:>14,}{ratio:>15.2f}"
    return ratio, f"{row}  {'alone' if reason else 'stacked'}"


def measure(setting: Setting, plans: Sequence[TrainingPlan], rounds: int) -> float:
    """How many times faster a stack takes the steps, median over rounds; the rule is not asked."""

    def train(groups: Sequence[Sequence[TrainingPlan]]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            for group in groups:
                classifiers = [setting.classifier() for _ in group]
                train_together(classifiers, group, states=StateFolder(Path(folder)), key="bench")
                StateFolder(Path(folder)).clear()

    times = alternate(
        {
            "stacked": lambda: seconds(lambda: train([plans])),
            "alone": lambda: seconds(lambda: train([[plan] for plan in plans])),
        },
        rounds,
    )
    return statistics.median(
        alone / stacked for alone, stacked in zip(times["alone"], times["stacked"], strict=True)
    )
