"""The loop: resumes exactly, switches modes, sees divergence, pairs arms, and learns."""

import math
import re
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kd_pipeline.data.images import ImageSet
from kd_pipeline.errors import TrainingDivergedError
from kd_pipeline.events import EpochEnded, Event, listening
from kd_pipeline.losses.hard import NO_LABEL
from kd_pipeline.losses.settings import ObjectiveParams
from kd_pipeline.memory import MemoryBudget
from kd_pipeline.models.checkpoint import build_untrained
from kd_pipeline.models.classifier import Classifier
from kd_pipeline.models.preprocessing import Preprocessing
from kd_pipeline.models.settings import Model
from kd_pipeline.models.state_folder import StateFolder
from kd_pipeline.soft_targets.settings import SoftTargetsParams
from kd_pipeline.teacher_logits import TeacherLogits
from kd_pipeline.training import engine
from kd_pipeline.training.engine import TrainingPlan, TrainingRecord, train_classifier
from kd_pipeline.training.rows import Rows, measure_validation
from kd_pipeline.training.settings import Training
from kd_pipeline.training.teacher_sources import CachedLogits, LiveLogits
from kd_pipeline.views import ViewPolicy, ViewRenderer
from kd_pipeline.views.settings import ViewsParams

SHIFTS = ViewsParams(seed=1, num_views=None, transforms=[{"name": "shift", "max_pixels": 1}]).policy


def model(**arguments: Any) -> Classifier:
    settings = Model(name="small_cnn", arguments={"channels": [4, 4], "dropout": 0.3} | arguments)
    return build_untrained(
        settings, Preprocessing((1, 8, 8), (0.5,), (0.3,)), num_classes=3, seed=0
    )


def plan(**changes: Any) -> TrainingPlan:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(40) % 3
    pixels = torch.randint(0, 100, (40, 1, 8, 8), generator=generator, dtype=torch.uint8)
    for row, label in enumerate(labels.tolist()):
        pixels[row, :, 3 * label : 3 * label + 2] += 120
    training = {
        "num_epochs": 6,
        "batch_size": 8,
        "optimiser": {"name": "AdamW", "arguments": {"lr": 0.02}},
        "schedule": {"name": "cosine", "warmup_fraction": 0.1},
        "checkpoint_every": 3,
        "device": "cpu",
        "precision": "float32",
    }
    images = ImageSet(np.arange(40), pixels.numpy(), ("a", "b", "c"))
    rows = Rows(images.reader(images.example_ids, device="cpu", budget=MemoryBudget(2**20)), labels)
    base = TrainingPlan(
        rows=rows,
        validation=rows,
        objective=ObjectiveParams(),
        training=Training(**(training | changes.pop("training", {}))),
        steps_per_epoch=5,
        seed=3,
        policy=SHIFTS,
    )
    return replace(base, **changes)


def train(folder: Path, the_plan: TrainingPlan | None = None) -> tuple[Classifier, TrainingRecord]:
    classifier = model()
    record = train_classifier(classifier, the_plan or plan(), states=StateFolder(folder), key="k")
    return classifier, record


def cached(logits: Tensor) -> CachedLogits:
    """A cache of logits [num_rows, num_views, num_classes], in the order of the rows."""
    values = logits.half().swapaxes(0, 1).contiguous().numpy()
    return CachedLogits(
        TeacherLogits(values), torch.arange(values.shape[1]), identity={}, device="cpu"
    )


def spy_on_views(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Example and view of all that is drawn, in order."""
    drawn: list[tuple[int, int]] = []

    class Spy(ViewRenderer):
        def draw(self, positions: Tensor, views: Tensor | int) -> Any:
            ids = self.pixels.example_ids[positions.flatten()].tolist()
            drawn.extend(zip(ids, torch.as_tensor(views).flatten().tolist(), strict=True))
            return super().draw(positions, views)

    monkeypatch.setattr(engine, "ViewRenderer", Spy)
    return drawn


def same_weights(first: nn.Module, second: nn.Module) -> bool:
    return all(
        torch.equal(a, b)
        for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )


class KilledError(Exception):
    """Stands for the end of the process."""


def kill_after(epoch: int | None) -> Any:
    def listener(event: Event) -> None:
        if isinstance(event, EpochEnded) and event.epoch == epoch:
            raise KilledError

    return listening(listener)


@pytest.mark.parametrize("killed_in", [4, 5, 6])
@pytest.mark.parametrize("name", ["SGD", "AdamW", "RMSprop", "timm:Muon"])
def test_three_epochs_a_kill_and_the_rest_equal_six_bit_for_bit(
    tmp_path: Path, killed_in: int, name: str
) -> None:
    """Dropout, batch norm, views, momentum and the schedule all go on where they were."""
    arguments = {"lr": 0.02, "momentum": 0.9} if name == "SGD" else {"lr": 0.02}
    the_plan = plan(training={"optimiser": {"name": name, "arguments": arguments}})
    unbroken, record = train(tmp_path / "unbroken", the_plan)
    with pytest.raises(KilledError), kill_after(killed_in):
        train(tmp_path / "killed", the_plan)
    torch.manual_seed(12345)  # Whatever global state the new process starts in.
    resumed, again = train(tmp_path / "killed", the_plan)
    assert same_weights(unbroken, resumed)
    timeless = [
        [{k: v for k, v in row.items() if "second" not in k} for row in r.history]
        for r in (record, again)
    ]
    assert timeless[0] == timeless[1]


@pytest.mark.parametrize(("killed_in", "again"), [(3, 7), (5, 4), (7, 1), (None, 0)])
def test_a_training_goes_on_from_its_last_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_in: int | None, again: int
) -> None:
    """Kept after three epochs, after six and at the end: so many of seven are trained again."""
    the_plan = plan(training={"num_epochs": 7})
    with suppress(KilledError), kill_after(killed_in):
        train(tmp_path, the_plan)
    seen = spy_on_views(monkeypatch)
    train(tmp_path, the_plan)
    assert len(seen) == again * 40


def test_a_plateau_goes_on_counting_after_a_kill(tmp_path: Path) -> None:
    """With a bound that is never reached, each second measurement lowers the rate by ten."""
    never = {"patience": 1, "threshold": 99.0, "threshold_mode": "abs"}
    the_plan = plan(training={"schedule": {"name": "ReduceLROnPlateau", "arguments": never}})
    unbroken, _ = train(tmp_path / "unbroken", the_plan)
    with pytest.raises(KilledError), kill_after(4):
        train(tmp_path / "killed", the_plan)
    resumed, _ = train(tmp_path / "killed", the_plan)
    assert same_weights(unbroken, resumed)
    constant, _ = train(tmp_path / "constant", plan(training={"schedule": {"name": "constant"}}))
    assert not same_weights(unbroken, constant)


def test_a_resumed_training_emits_its_whole_history_again(tmp_path: Path) -> None:
    with pytest.raises(KilledError), kill_after(5):
        train(tmp_path)
    events: list[Event] = []
    with listening(events.append):
        train(tmp_path)
    assert [e.epoch for e in events if isinstance(e, EpochEnded)] == [1, 2, 3, 4, 5, 6]


def test_two_trainings_are_equal_and_touch_no_global_random_state(tmp_path: Path) -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first, _ = train(tmp_path / "a")
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(6)
    second, _ = train(tmp_path / "b")
    assert same_weights(first, second)
    third, _ = train(tmp_path / "c", plan(seed=4))
    assert not same_weights(first, third)


def test_it_learns(tmp_path: Path) -> None:
    classifier, record = train(tmp_path, plan(training={"num_epochs": 30}, policy=ViewPolicy()))
    assert record.history[-1]["validation/accuracy"] > 0.95
    assert record.history[-1]["train/loss"] < record.history[0]["train/loss"] / 3
    assert not classifier.training


def test_the_student_is_back_in_train_mode_after_every_validation(tmp_path: Path) -> None:
    modes: list[tuple[bool, bool]] = []

    class Witness(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            modes.append((self.training, torch.is_grad_enabled()))
            return images

    classifier = model()
    classifier.network.append(Witness())
    train_classifier(classifier, plan(), states=StateFolder(tmp_path), key="k")
    # The first pass counts multiply-accumulates.
    epochs = [modes[at : at + 6] for at in range(1, 37, 6)]
    assert epochs == [[(True, True)] * 5 + [(False, False)]] * 6


def test_statistics_of_frozen_norms_do_not_drift(tmp_path: Path) -> None:
    classifier = model()
    for parameter in classifier.network[:4].parameters():
        parameter.requires_grad_(False)
    before = {k: v.clone() for k, v in classifier.state_dict().items()}
    train_classifier(classifier, plan(), states=StateFolder(tmp_path), key="k")
    after = classifier.state_dict()
    frozen = [k for k in before if k.startswith(("network.0.", "network.1."))]
    assert frozen
    assert all(torch.equal(before[k], after[k]) for k in frozen)
    assert any(not torch.equal(before[k], after[k]) for k in before)
    # Those that are not frozen do drift.
    counted = [v for k, v in after.items() if k.endswith("num_batches_tracked")]
    assert [int(count) for count in counted] == [0, 6 * 5]


def test_a_norm_without_parameters_is_not_taken_for_a_frozen_one(tmp_path: Path) -> None:
    classifier = model()
    norm = nn.BatchNorm1d(3, affine=False)
    classifier.network.append(norm)
    train_classifier(classifier, plan(), states=StateFolder(tmp_path), key="k")
    assert norm.num_batches_tracked == 6 * 5


def test_a_loss_that_is_not_finite_stops_the_training(tmp_path: Path) -> None:
    wild = {"optimiser": {"name": "SGD", "arguments": {"lr": 1e30}}}
    with pytest.raises(TrainingDivergedError) as raised:
        train(tmp_path, plan(training=wild))
    assert re.fullmatch(
        r"the training loss became (nan|inf) in epoch 1; lower "
        r"`training.optimiser.arguments.lr` or set `training.max_gradient_norm`",
        str(raised.value),
    )


def test_early_stopping_watches_validation_and_keeps_its_best_epoch(tmp_path: Path) -> None:
    stopping = {"metric": "validation/loss", "patience": 2}
    training = {
        "num_epochs": 50,
        "early_stopping": stopping,
        "optimiser": {"name": "SGD", "arguments": {"lr": 0.5}},
    }
    classifier, record = train(tmp_path, plan(training=training))
    losses = [row["validation/loss"] for row in record.history]
    assert record.epoch == len(losses) < 50
    assert record.best_epoch == losses.index(min(losses)) + 1 == record.epoch - 2
    found = measure_validation(classifier, plan().validation, device="cpu")
    assert found["validation/loss"] == pytest.approx(min(losses), abs=1e-5)


def test_an_accuracy_is_best_where_it_is_highest(tmp_path: Path) -> None:
    stopping = {"metric": "validation/accuracy", "patience": 4}
    training = {"num_epochs": 50, "early_stopping": stopping}
    _, record = train(tmp_path, plan(training=training, policy=ViewPolicy()))
    accuracies = [row["validation/accuracy"] for row in record.history]
    assert accuracies[0] < max(accuracies)
    assert record.best_epoch == accuracies.index(max(accuracies)) + 1 == record.epoch - 4


@pytest.mark.parametrize("metric", ["validation/loss", "validation/accuracy"])
def test_of_equal_epochs_the_first_is_the_best(tmp_path: Path, metric: str) -> None:
    """At a rate of 0 all are equal."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    still = {
        "optimiser": {"name": "SGD", "arguments": {"lr": 0.0}},
        "early_stopping": {"metric": metric, "patience": 2},
    }
    record = train_classifier(
        Classifier(network, Preprocessing((1, 8, 8), (0.5,), (0.3,))),
        plan(training=still),
        states=StateFolder(tmp_path),
        key="k",
    )
    assert (record.best_epoch, record.epoch) == (1, 3)


def test_weight_norms_stay_bounded(tmp_path: Path) -> None:
    classifier, _ = train(tmp_path, plan(training={"max_weight_norm": 0.3}))
    norms = classifier.network[-1].weight.norm(dim=1)
    assert (norms <= 0.3 + 1e-5).all()


def test_weights_of_frozen_layers_are_left_as_they_are(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3))
    frozen, trained = network[1], network[3]
    frozen.requires_grad_(requires_grad=False)
    before = frozen.weight.clone()
    assert (before.norm(dim=1) > 0.3).all()
    train_classifier(
        Classifier(network, Preprocessing((1, 8, 8), (0.5,), (0.3,))),
        plan(training={"max_weight_norm": 0.3}),
        states=StateFolder(tmp_path),
        key="k",
    )
    assert torch.equal(frozen.weight, before)
    assert (trained.weight.norm(dim=1) <= 0.3 + 1e-5).all()


@pytest.mark.parametrize("num_views", [None, 1, 3])
def test_the_cached_logits_of_a_view_meet_the_pixels_of_that_view(
    tmp_path: Path, num_views: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The logits name their example and view; whatever meets them must be drawn as that view."""
    views = num_views or 1
    ids = torch.arange(40)
    names = ids[:, None] * 10 + torch.arange(views)
    seen = spy_on_views(monkeypatch)
    met: list[int] = []

    class Spy(engine.Objective):
        def __call__(self, student, labels, teacher, has, **rest):  # type: ignore[no-untyped-def]
            met.extend(teacher.logits[:, 0].int().tolist())
            return super().__call__(student, labels, teacher.map(torch.zeros_like), has, **rest)

    monkeypatch.setattr(engine, "Objective", Spy)
    teacher = cached(names[:, :, None].expand(-1, -1, 3))
    objective = ObjectiveParams(soft_weight=1.0)
    train(tmp_path, plan(num_views=views, teacher=teacher, objective=objective))
    assert met == [example * 10 + view for example, view in seen]
    assert {view for _, view in seen} == set(range(views))


def test_a_fresh_view_is_drawn_in_every_pass_where_none_are_cached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = spy_on_views(monkeypatch)
    train(tmp_path, plan())
    assert {view for _, view in seen} == set(range(6))


def test_rows_without_any_label_train_on_soft_targets_alone(tmp_path: Path) -> None:
    base = plan()
    logits = nn.functional.one_hot(base.rows.labels, 3)[:, None] * 8
    rows = replace(base.rows, labels=torch.full((40,), NO_LABEL))
    training = base.training.model_copy(update={"num_epochs": 30})
    soft = replace(
        base,
        rows=rows,
        teacher=cached(logits),
        training=training,
        objective=ObjectiveParams(soft_weight=0.5),
        policy=ViewPolicy(),
        num_views=1,
    )
    _, record = train(tmp_path, soft)
    assert record.history[-1]["validation/accuracy"] > 0.9
    assert math.isnan(record.history[-1]["train/accuracy"])
    assert all(math.isfinite(row["train/loss"]) for row in record.history)


def test_bfloat16_trains_too(tmp_path: Path) -> None:
    training = {"precision": "bfloat16", "num_epochs": 30}
    _, record = train(tmp_path, plan(training=training, policy=ViewPolicy()))
    assert record.history[-1]["validation/accuracy"] > 0.9


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of threads that were set, after a first one of 3; none is really started."""
    numbers = [3]
    monkeypatch.setattr(torch, "set_num_threads", numbers.append)
    monkeypatch.setattr(torch, "get_num_threads", lambda: numbers[-1])
    return numbers


@pytest.mark.parametrize(("bound", "expected"), [(10**9, 1), (0, 3)])
def test_a_small_step_takes_one_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: list[int], bound: int, expected: int
) -> None:
    monkeypatch.setattr("kd_pipeline.training.threads.MAX_MACS_ON_ONE_THREAD", bound)
    classifier, in_training = model(), set()
    classifier.network.register_forward_pre_hook(
        lambda module, _: in_training.add(threads[-1]) if module.training else None
    )
    train_classifier(classifier, plan(), states=StateFolder(tmp_path), key="k")
    assert in_training == {expected}
    assert threads[-1] == 3


def test_beside_a_live_teacher_all_threads_are_used(tmp_path: Path, threads: list[int]) -> None:
    teacher = LiveLogits({}, [model().eval()], SoftTargetsParams(), 1.0, nullcontext)
    live = plan(teacher=teacher, objective=ObjectiveParams(soft_weight=1.0))
    train(tmp_path, live)
    assert threads == [3]


def test_threads_are_back_after_a_training_that_failed(tmp_path: Path, threads: list[int]) -> None:
    with pytest.raises(TrainingDivergedError):
        train(tmp_path, plan(training={"optimiser": {"name": "SGD", "arguments": {"lr": 1e30}}}))
    assert threads[-1] == 3
