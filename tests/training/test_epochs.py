"""What an epoch measures and leaves behind: of one model, of replicates, of one process of many."""

import itertools
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from kd_pipeline.data.images import ImageSet
from kd_pipeline.events import EpochEnded, Event, listening
from kd_pipeline.losses.hard import NO_LABEL
from kd_pipeline.losses.settings import ObjectiveParams
from kd_pipeline.memory import MemoryBudget
from kd_pipeline.models.classifier import Classifier
from kd_pipeline.models.preprocessing import Preprocessing
from kd_pipeline.models.state_folder import StateFolder
from kd_pipeline.randomness import seeded
from kd_pipeline.teacher_logits import TeacherLogits
from kd_pipeline.training import engine
from kd_pipeline.training.distributed import Processes
from kd_pipeline.training.engine import TrainingPlan, TrainingRecord, train_together
from kd_pipeline.training.rows import Rows
from kd_pipeline.training.settings import Training
from kd_pipeline.training.teacher_sources import CachedLogits

NUM_ROWS = 40
EVERYTHING = torch.arange(NUM_ROWS)


def rows_of(labels: Tensor, has_soft_target: Tensor | None = None) -> Rows:
    """Images of one grey value each, which is the number of the example."""
    pixels = np.arange(NUM_ROWS, dtype=np.uint8)[:, None, None, None].repeat(4, axis=3)
    images = ImageSet(np.arange(NUM_ROWS), pixels, ("a", "b", "c"))
    reader = images.reader(images.example_ids, device="cpu", budget=MemoryBudget(2**20))
    return Rows(reader, labels, has_soft_target)


def plan_of(training: dict[str, Any] | None = None, **changes: Any) -> TrainingPlan:
    usual = {
        "num_epochs": 2,
        "batch_size": 8,
        "optimiser": {"name": "SGD", "arguments": {"lr": 0.5}},
        "device": "cpu",
        "precision": "float32",
    }
    plan = TrainingPlan(
        rows=rows_of(EVERYTHING % 3),
        validation=rows_of(EVERYTHING % 3),
        objective=ObjectiveParams(),
        training=Training(**usual | (training or {})),
        steps_per_epoch=5,
        seed=3,
    )
    return replace(plan, **changes)


def taught(training: dict[str, Any] | None = None, **changes: Any) -> TrainingPlan:
    """A quarter of the labels and a third of the soft targets are missing."""
    labels = (EVERYTHING % 3).where(EVERYTHING % 4 > 0, NO_LABEL)
    targets = TeacherLogits(LOGITS[None].numpy())
    return plan_of(
        training,
        rows=rows_of(labels, EVERYTHING % 3 > 0),
        teacher=CachedLogits(targets, EVERYTHING, identity={}, device="cpu"),
        num_views=1,
        objective=ObjectiveParams(soft_weight=0.25, temperature=2.0, label_smoothing=0.1),
        **changes,
    )


LOGITS = torch.randn(NUM_ROWS, 3, generator=torch.Generator().manual_seed(0)).half()


def classifier_of(seed: int = 0, *appended: nn.Module) -> Classifier:
    """A linear one, with initial weights of a seed."""
    with seeded(seed):
        network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), *appended)
    return Classifier(network, Preprocessing((1, 1, 4), (0.08,), (0.05,)))


def train(
    folder: Path,
    plan: TrainingPlan,
    classifier: Classifier | None = None,
    processes: Processes | None = None,
) -> TrainingRecord:
    return train_together(
        [classifier or classifier_of()],
        [plan],
        states=StateFolder(folder),
        key="k",
        processes=processes or Processes(),
    )


def timeless(row: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in row.items() if "second" not in name}


def test_metrics_are_means_over_the_examples_of_the_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At a rate of 0 all five steps have the initial weights, and show every row once."""
    monkeypatch.setattr(engine, "STEPS_PER_CHUNK", 2)
    plan = taught({"optimiser": {"name": "SGD", "arguments": {"lr": 0.0}}})
    with torch.no_grad():
        logits = classifier_of()(plan.rows.pixels(EVERYTHING))
    known, has = plan.rows.labels != NO_LABEL, plan.rows.has_soft_target
    right = logits[known].argmax(dim=1) == plan.rows.labels[known]
    hard = float(F.cross_entropy(logits[known], plan.rows.labels[known], label_smoothing=0.1))
    pair = [F.log_softmax(part / 2, dim=1)[has] for part in (logits, LOGITS.float())]
    soft = 4 * float(F.kl_div(*pair, reduction="sum", log_target=True)) / NUM_ROWS
    expected = {
        "train/hard_loss": hard,
        "train/soft_loss": soft,
        "train/loss": 0.75 * hard * 30 / NUM_ROWS + 0.25 * soft,
        "train/accuracy": int(right.sum()) / 30,
    }
    row = train(tmp_path, plan).history[0]
    assert {name: row[name] for name in expected} == pytest.approx(expected)


def test_an_event_holds_what_was_measured_in_its_epoch(tmp_path: Path) -> None:
    """Validation in every second epoch and in the last; nothing of labels, where there are none."""
    plan = taught({"num_epochs": 5, "evaluate_every": 2}, replicate=4)
    unlabelled = replace(
        plan,
        rows=rows_of(torch.full((NUM_ROWS,), NO_LABEL)),
        objective=ObjectiveParams(soft_weight=1.0),
    )
    events: list[Event] = []
    with listening(events.append):
        record = train(tmp_path, unlabelled)
    always = {"train/loss", "train/soft_loss", "train/examples_per_second"}
    validation = {"validation/loss", "validation/accuracy"}
    for epoch, (event, row) in enumerate(zip(events, record.history, strict=True), start=1):
        measured = always | validation if epoch in (2, 4, 5) else always
        assert event == EpochEnded(4, epoch, {name: row[name] for name in measured})


def test_a_row_of_the_history_counts_on_from_an_earlier_training() -> None:
    metrics = {"train/loss": 0.5, "validation/accuracy": 0.75}
    counted = {"replicate": 2, "epoch": 3, "step": 15}
    assert plan_of(replicate=2).row(3, metrics) == counted | metrics
    after = plan_of(epochs_before=10, metrics_group="quantisation")
    assert after.row(3, metrics) == {
        "replicate": 0,
        "epoch": 13,
        "step": 65,
        "quantisation/train_loss": 0.5,
        "quantisation/validation_accuracy": 0.75,
    }


class KilledError(Exception):
    """Stands for the end of the process."""


def kill_in_the_third(event: Event) -> None:
    if isinstance(event, EpochEnded) and event.epoch == 3:
        raise KilledError


@pytest.mark.parametrize("num_replicates", [1, 2])
def test_seconds_are_those_of_all_epochs_also_of_a_killed_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_replicates: int
) -> None:
    """The clock is two seconds further whenever it is read; 40 examples are shown meanwhile."""
    clock = itertools.count(100.0, 2.0)
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    plans = [plan_of({"num_epochs": 4, "checkpoint_every": 2})] * num_replicates
    states = StateFolder(tmp_path)
    with suppress(KilledError), listening(kill_in_the_third):
        train_together([classifier_of() for _ in plans], plans, states=states, key="k")
    record = train_together([classifier_of() for _ in plans], plans, states=states, key="k")
    assert record.seconds == 4 * 2
    rates = [row["train/examples_per_second"] for row in record.history]
    assert rates == [20.0 * num_replicates] * (4 * num_replicates)


def test_two_replicates_together_are_each_alone_up_to_rounding(tmp_path: Path) -> None:
    plans = [taught(seed=3, replicate=0), taught(seed=4, replicate=1)]
    together = [classifier_of(0), classifier_of(1)]
    record = train_together(together, plans, states=StateFolder(tmp_path / "both"), key="k")
    for at, (plan, trained) in enumerate(zip(plans, together, strict=True)):
        alone = classifier_of(at)
        own = train(tmp_path / str(at), plan, alone)
        torch.testing.assert_close(trained.state_dict(), alone.state_dict())
        for row, expected in zip(record.history[at::2], own.history, strict=True):
            assert timeless(row) == pytest.approx(timeless(expected), rel=1e-5)


@dataclass(frozen=True)
class OneOf(Processes):
    """One process of several, by itself: nothing is exchanged with the others."""

    def parallel(self, classifier: nn.Module) -> nn.Module:
        return classifier

    def total(self, values: Tensor) -> Tensor:
        return values

    def from_first(self, make: Callable[[], Any]) -> Any:
        return make()


def test_the_mean_over_uneven_slices_is_the_gradient_of_the_batch(tmp_path: Path) -> None:
    """Of the one step that each takes; the losses that the processes add up are the batch's."""
    plan = taught({"num_epochs": 1, "batch_size": 7}, steps_per_epoch=1)
    gradients: list[Tensor] = []
    handle = register_optimizer_step_pre_hook(
        lambda optimiser, *_: gradients.append(optimiser.param_groups[0]["params"][0].grad.clone())
    )
    try:
        rows = [
            train(tmp_path / f"{count} {rank}", plan, processes=OneOf(rank, count)).history[0]
            for count in (1, 3)
            for rank in range(count)
        ]
    finally:
        handle.remove()
    torch.testing.assert_close(torch.stack(gradients[1:]).mean(dim=0), gradients[0])
    for name in ("train/loss", "train/soft_loss"):
        assert sum(row[name] for row in rows[1:]) == pytest.approx(rows[0][name])


def test_only_the_first_process_keeps_states(tmp_path: Path) -> None:
    for rank in (0, 1):
        train(tmp_path / str(rank), plan_of(), processes=OneOf(rank, 2))
    assert [path.name for path in tmp_path.iterdir()] == ["0"]


class Drawing(nn.Module):
    """Adds nothing; draws numbers where dropout draws a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.drawn: list[list[int]] = []

    def forward(self, logits: Tensor) -> Tensor:
        if self.training:
            self.drawn.append(torch.randint(1000, (3,)).tolist())
        return logits


def test_a_seed_draws_what_it_has_always_drawn(tmp_path: Path) -> None:
    """Students of earlier versions are compared with new ones, and killed trainings go on."""
    witness, shown = Drawing(), list[Tensor]()
    classifier = classifier_of(0, witness)
    classifier.register_forward_pre_hook(
        lambda module, given: shown.append(given[0]) if module.training else None
    )
    train(tmp_path / "alone", plan_of(), classifier)
    examples = [pixels[:, 0, 0, 0].tolist() for pixels in (shown[0], shown[5])]
    assert examples == [[25, 38, 36, 15, 11, 22, 17, 16], [1, 5, 17, 19, 37, 12, 14, 7]]
    assert [witness.drawn[0], witness.drawn[5]] == [[561, 964, 463], [20, 700, 580]]


def test_processes_draw_other_masks(tmp_path: Path) -> None:
    witnesses = [Drawing() for _ in range(3)]
    for rank, witness in enumerate(witnesses):
        train(tmp_path / str(rank), plan_of(), classifier_of(0, witness), OneOf(rank, 3))
    alone = Drawing()
    train(tmp_path / "alone", plan_of(), classifier_of(0, alone))
    first, second, third = (witness.drawn for witness in witnesses)
    assert first == alone.drawn
    assert first != second != third != first
