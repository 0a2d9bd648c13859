"""Trials whose training is a formula: no network is trained."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from kd_pipeline.events import EpochEnded, TrainingStarted, emit
from kd_pipeline.shards import Shard
from kd_pipeline.sweep.settings import SweepParams
from kd_pipeline.sweep.trials import ArmTrials
from kd_pipeline.training.settings import ArmParams, StudentParams

LR = "student.training.optimiser.arguments.lr"
NUM_EPOCHS = 4


@dataclass
class Formula:
    """Trains like `train_students`: accuracy is best at a learning rate of 0.01."""

    tried: list[tuple[float, float]] = field(default_factory=list)
    """Learning rate and temperature of each trial."""
    before: Callable[[int], None] = lambda _number: None
    """Called before each trial with its number in this process."""
    states: list[Any] = field(default_factory=list)

    def __call__(self, student: StudentParams, arm: ArmParams, states: Any) -> Any:
        lr = student.training.optimiser.arguments["lr"]
        self.states.append(states.folder)
        self.before(len(self.tried))
        self.tried.append((lr, arm.temperature))
        rows = []
        for replicate in range(student.num_replicates):
            emit(TrainingStarted(replicate, {"lr": lr}, NUM_EPOCHS))
            for epoch in range(1, NUM_EPOCHS + 1):
                accuracy = (0.9 - abs(math.log10(lr) + 2) / 4) * epoch / NUM_EPOCHS
                accuracy -= 0.01 * replicate + 0.001 * arm.temperature
                metrics = {"validation/accuracy": accuracy, "validation/loss": 1 - accuracy}
                emit(EpochEnded(replicate, epoch, metrics))
                rows.append({"replicate": replicate, "epoch": epoch, **metrics})
        numbers = range(student.num_replicates)
        kept = [{"replicate": number, "best_epoch": NUM_EPOCHS} for number in numbers]
        return [SimpleNamespace(facts=facts) for facts in kept], pd.DataFrame(rows)


@pytest.fixture
def formula() -> Formula:
    return Formula()


@pytest.fixture
def make_trials(tmp_path: Path, formula: Formula) -> Callable[..., ArmTrials]:
    """Trials of an arm, `student_kd` or the baseline, with changes to the block `sweep`."""

    def make(
        arm: str = "student_kd", train: Any = formula, shard: Shard | None = None, **changes: Any
    ) -> ArmTrials:
        block: dict[str, Any] = {
            "num_trials": 8,
            "num_startup_trials": 3,
            "parameters": {
                LR: {"low": 1e-4, "high": 1.0, "log": True},
                "student_kd.temperature": {"low": 1.0, "high": 8.0},
            },
        }
        student = StudentParams(
            model={"name": "mlp"},
            training={"num_epochs": NUM_EPOCHS, "optimiser": {"arguments": {"lr": 0.1}}},
        )
        own = ArmParams(temperature=2.0, soft_weight=1.0) if arm == "student_kd" else ArmParams()
        params = SweepParams(**block | changes)
        facts, folder = {"images": "i"}, tmp_path / "sweep"
        return ArmTrials(arm, params, student, own, facts, {}, train, folder, shard)

    return make
