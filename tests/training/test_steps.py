"""What one step of the training loop does: rate, clipping, masks, precision, labels, pixels."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from kd_pipeline.data.images import ImageSet
from kd_pipeline.losses.settings import ObjectiveParams
from kd_pipeline.memory import MemoryBudget
from kd_pipeline.models.checkpoint import build_untrained
from kd_pipeline.models.classifier import Classifier
from kd_pipeline.models.preprocessing import Preprocessing
from kd_pipeline.models.settings import Model
from kd_pipeline.models.state_folder import StateFolder
from kd_pipeline.teacher_logits import TeacherLogits
from kd_pipeline.training import engine
from kd_pipeline.training.engine import TrainingPlan, train_classifier
from kd_pipeline.training.rows import Rows
from kd_pipeline.training.settings import Training
from kd_pipeline.training.teacher_sources import CachedLogits, LogitsOfSteps
from kd_pipeline.views.settings import ViewsParams

NUM_ROWS = 40
TRAINING = Training(
    num_epochs=2,
    batch_size=8,
    optimiser={"name": "SGD", "arguments": {"lr": 0.5}},
    schedule={"name": "cosine", "warmup_fraction": 0.3},
    device="cpu",
    precision="float32",
)


@pytest.fixture(scope="module")
def rows() -> Rows:
    """Grey noise of 6 by 6 pixels with labels of three classes."""
    pixels = np.random.default_rng(0).integers(0, 255, (NUM_ROWS, 1, 6, 6), dtype=np.uint8)
    images = ImageSet(np.arange(NUM_ROWS), pixels, ("a", "b", "c"))
    reader = images.reader(images.example_ids, device="cpu", budget=MemoryBudget(2**20))
    return Rows(reader, torch.arange(NUM_ROWS) % 3)


def plan_of(rows: Rows, training: dict[str, Any] | None = None, **changes: Any) -> TrainingPlan:
    chosen = TRAINING.model_copy(update=training or {})
    fields: dict[str, Any] = {"objective": ObjectiveParams(), "steps_per_epoch": 5, "seed": 3}
    return TrainingPlan(rows=rows, validation=rows, training=chosen, **{**fields, **changes})


def classifier_of(*appended: nn.Module) -> Classifier:
    preprocessing = Preprocessing((1, 6, 6), (0.5,), (0.3,))
    made = build_untrained(
        Model(name="mlp", arguments={"hidden": [8]}), preprocessing, num_classes=3, seed=0
    )
    if appended:
        made.network = nn.Sequential(made.network, *appended)
    return made


def train(folder: Path, plan: TrainingPlan, classifier: Classifier | None = None) -> Classifier:
    classifier = classifier or classifier_of()
    history_of(folder, plan, classifier)
    return classifier


def history_of(
    folder: Path, plan: TrainingPlan, classifier: Classifier | None = None
) -> list[dict[str, float]]:
    classifier = classifier or classifier_of()
    return train_classifier(classifier, plan, states=StateFolder(folder), key="k").history


def cached(logits: Tensor) -> CachedLogits:
    """A cache of one view, of logits [num_rows, num_classes] in the order of the rows."""
    targets = TeacherLogits(logits.half()[None].numpy())
    return CachedLogits(targets, torch.arange(len(logits)), identity={}, device="cpu")


@dataclass(frozen=True)
class Update:
    """What an optimiser was about to do."""

    lr: float
    gradient_norm: float


def updates(folder: Path, plan: TrainingPlan) -> list[Update]:
    """Each step's learning rate, and the norm of the gradients that it applies."""
    found: list[Update] = []

    def note(optimiser: torch.optim.Optimizer, *_: Any) -> None:
        (group,) = optimiser.param_groups
        norms = [parameter.grad.norm() for parameter in group["params"]]
        found.append(Update(group["lr"], float(torch.stack(norms).norm())))

    handle = register_optimizer_step_pre_hook(note)
    try:
        train(folder, plan)
    finally:
        handle.remove()
    return found


def test_step_n_takes_the_rate_of_step_n(rows: Rows, tmp_path: Path) -> None:
    """Ten steps, three of them warm-up: quarters of the rate, then a cosine that begins at it."""
    rates = [update.lr for update in updates(tmp_path, plan_of(rows))]
    warmup = [1 / 4, 2 / 4, 3 / 4]
    cosine = [0.5 * (1 + math.cos(math.pi * step / 7)) for step in range(7)]
    assert rates == pytest.approx([0.5 * factor for factor in (*warmup, *cosine)])


def test_gradients_are_clipped_before_they_are_applied(rows: Rows, tmp_path: Path) -> None:
    free = [update.gradient_norm for update in updates(tmp_path / "free", plan_of(rows))]
    bound = {"max_gradient_norm": min(free) / 2}
    clipped = updates(tmp_path / "clipped", plan_of(rows, bound))
    assert [u.gradient_norm for u in clipped] == pytest.approx([min(free) / 2] * 10, rel=1e-3)


def test_a_chunk_of_steps_equals_its_steps_one_by_one(
    rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seventy steps of an epoch are more than one chunk."""
    plan = plan_of(rows, {"num_epochs": 1}, steps_per_epoch=70)
    assert engine.STEPS_PER_CHUNK < 70
    whole = train(tmp_path / "whole", plan).state_dict()
    monkeypatch.setattr(engine, "STEPS_PER_CHUNK", 1)
    single = train(tmp_path / "single", plan).state_dict()
    assert all(torch.equal(whole[name], single[name]) for name in whole)


@pytest.fixture
def losses(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the objective is given and what it returns, step by step."""
    calls: list[dict[str, Any]] = []

    class Spy(engine.Objective):
        def __call__(self, student, labels, teacher, has, **rest):  # type: ignore[no-untyped-def]
            terms = super().__call__(student, labels, teacher, has, **rest)
            calls.append(
                {"student": student, "teacher": teacher, "has": has, "labels": labels}
                | {"loss": terms.loss.detach(), **rest}
            )
            return terms

    monkeypatch.setattr(engine, "Objective", Spy)
    return calls


def test_the_mask_of_soft_targets_is_that_of_the_steps_rows(
    rows: Rows, tmp_path: Path, losses: list[dict[str, Any]]
) -> None:
    """The teacher's first logit numbers the row, so that each row is found again in its step."""
    mask = torch.rand(NUM_ROWS, generator=torch.Generator().manual_seed(0)) < 0.5
    teacher = cached(torch.arange(NUM_ROWS)[:, None].expand(-1, 3))
    objective = ObjectiveParams(soft_weight=0.5)
    masked = replace(rows, has_soft_target=mask)
    train(tmp_path, plan_of(masked, teacher=teacher, num_views=1, objective=objective))
    assert len(losses) == 10
    for call in losses:
        shown = call["teacher"].logits[:, 0].long()
        assert torch.equal(call["has"], mask[shown])
        assert torch.equal(call["labels"], rows.labels[shown])


def test_progress_is_the_share_of_all_steps_that_are_done(
    rows: Rows, tmp_path: Path, losses: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two epochs of five steps, in chunks of two."""
    monkeypatch.setattr(engine, "STEPS_PER_CHUNK", 2)
    train(tmp_path, plan_of(rows))
    assert [call["progress"] for call in losses] == pytest.approx([k / 10 for k in range(1, 11)])


@pytest.fixture
def other_default() -> Iterator[None]:
    """On CUDA, torch's own choice for autocast is float16; here it is so on the CPU."""
    before = torch.get_autocast_dtype("cpu")
    torch.set_autocast_dtype("cpu", torch.float16)
    yield
    torch.set_autocast_dtype("cpu", before)


@pytest.mark.usefixtures("other_default")
def test_logits_of_bfloat16_give_a_loss_of_float32(
    rows: Rows, tmp_path: Path, losses: list[dict[str, Any]]
) -> None:
    train(tmp_path, plan_of(rows, {"precision": "bfloat16"}))
    for call in losses:
        assert call["student"].dtype == torch.bfloat16
        assert call["loss"].dtype == torch.float32
        expected = nn.functional.cross_entropy(call["student"].float(), call["labels"])
        assert call["loss"].item() == pytest.approx(expected.item(), abs=1e-6)


class DropoutOfOnes(nn.Module):
    """Adds nothing and notes which of a thousand ones dropout would keep."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[Tensor] = []

    def forward(self, logits: Tensor) -> Tensor:
        if self.training:
            self.kept.append(nn.functional.dropout(torch.ones(1000), 0.5).bool())
        return logits


@pytest.fixture
def masks(rows: Rows, tmp_path: Path) -> Callable[..., list[Tensor]]:
    def of(name: str, **changes: Any) -> list[Tensor]:
        witness = DropoutOfOnes()
        train(tmp_path / name, plan_of(rows, **changes), classifier_of(witness))
        return witness.kept

    return of


def test_dropout_differs_between_replicates_and_steps_but_not_between_arms(
    masks: Callable[..., list[Tensor]],
) -> None:
    first = masks("first", seed=3)
    other_arm = masks("arm", seed=3, objective=ObjectiveParams(label_smoothing=0.1))
    other_replicate = masks("replicate", seed=4)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(first, other_arm, strict=True))
    every = torch.stack([*first, *other_replicate])
    assert len(every.unique(dim=0)) == len(every) == 20


def test_losses_are_summed_in_float64(
    rows: Rows, tmp_path: Path, losses: list[dict[str, Any]]
) -> None:
    (row,) = history_of(tmp_path, plan_of(rows, {"num_epochs": 1}, steps_per_epoch=70))
    mean = math.fsum(call["loss"].item() for call in losses) / 70
    assert row["train/loss"] == pytest.approx(mean, rel=1e-13)


def pixels_shown_to(classifier: Classifier) -> list[Tensor]:
    """Those of each training step, once it is trained."""
    shown: list[Tensor] = []
    classifier.register_forward_pre_hook(
        lambda module, given: shown.append(given[0]) if module.training else None
    )
    return shown


MIXUP = ViewsParams(seed=1, transforms=[{"name": "mixup"}]).policy


def painted(labels: Tensor, values: list[int]) -> Rows:
    """Images of one grey value each, that of their label."""
    greys = torch.tensor(values, dtype=torch.uint8)[labels]
    pixels = greys.view(-1, 1, 1, 1).expand(-1, 1, 6, 6).numpy()
    images = ImageSet(np.arange(len(labels)), pixels, ("a", "b", "c"))
    return Rows(images.reader(images.example_ids, device="cpu", budget=MemoryBudget(2**20)), labels)


def test_a_mixed_image_has_the_labels_of_both_with_their_weights(
    tmp_path: Path, losses: list[dict[str, Any]]
) -> None:
    """No grey value of the rows is one of their partners', so that a mixture shows both labels."""
    own, other = torch.tensor([0.0, 100.0, 200.0]), torch.tensor([50.0, 150.0, 250.0])
    rows = painted(torch.arange(NUM_ROWS) % 3, own.int().tolist())
    partners = painted(torch.arange(20) // 2 % 3, other.int().tolist())
    classifier = classifier_of()
    shown = pixels_shown_to(classifier)
    history = history_of(tmp_path, plan_of(rows, policy=MIXUP, partners=partners), classifier)
    right = []
    for pixels, call in zip(shown, losses, strict=True):
        labels, partner_labels, weight = call["labels"]
        grey = weight * own[labels] + (1 - weight) * other[partner_labels]
        torch.testing.assert_close(pixels[:, 0, 0, 0] * 255, grey, rtol=0, atol=0.01)
        dominant = torch.where(weight >= 0.5, labels, partner_labels)
        right.append((call["student"].argmax(dim=1) == dominant).double().mean())
    accuracies = torch.stack(right).view(2, 5).mean(dim=1).tolist()
    assert [row["train/accuracy"] for row in history] == pytest.approx(accuracies)


def test_partners_change_nothing_where_no_images_are_mixed(rows: Rows, tmp_path: Path) -> None:
    beside = train(tmp_path / "beside", plan_of(rows, partners=rows)).state_dict()
    without = train(tmp_path / "without", plan_of(rows)).state_dict()
    assert all(torch.equal(beside[name], without[name]) for name in without)


class LiveWitness:
    """A teacher that runs beside the student, and keeps the pixels that it is shown."""

    identity: Mapping[str, Any] = {}

    def __init__(self) -> None:
        self.shown: list[Tensor] = []

    def chunk(self, *_: Tensor) -> LogitsOfSteps:
        def of_step(_step: int, pixels: Tensor) -> TeacherLogits[Tensor]:
            self.shown.append(pixels)
            return TeacherLogits(torch.zeros(len(pixels), 3))

        return of_step


def test_a_live_teacher_is_shown_the_pixels_that_the_student_is_shown(
    rows: Rows, tmp_path: Path
) -> None:
    teacher, classifier = LiveWitness(), classifier_of()
    shown = pixels_shown_to(classifier)
    objective = ObjectiveParams(soft_weight=0.5)
    train(tmp_path, plan_of(rows, teacher=teacher, objective=objective), classifier)
    assert len(shown) == 10
    assert all(torch.equal(*pair) for pair in zip(shown, teacher.shown, strict=True))


def test_a_live_teacher_runs_in_no_step_that_has_no_soft_term(rows: Rows, tmp_path: Path) -> None:
    """Two epochs of five steps."""
    teacher = LiveWitness()
    schedule = {"stop_fraction": 0.7}
    objective = ObjectiveParams(soft_weight=0.5, soft_weight_schedule=schedule)
    train(tmp_path, plan_of(rows, teacher=teacher, objective=objective))
    assert len(teacher.shown) == 7
