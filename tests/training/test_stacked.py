"""Stacked replicates: each trains as it would alone, and what cannot be stacked trains alone."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_pipeline.data.dataset import LabelledImages
from kd_pipeline.data.splits import ids_with_role
from kd_pipeline.errors import TrainingDivergedError
from kd_pipeline.events import EpochEnded, Event, TrainingEnded, TrainingStarted, listening
from kd_pipeline.models.checkpoint import ModelCheckpoint, build_classifier
from kd_pipeline.models.classifier import Classifier
from kd_pipeline.models.preprocessing import Preprocessing
from kd_pipeline.models.state_folder import StateFolder
from kd_pipeline.randomness import seeded
from kd_pipeline.soft_targets.settings import SoftTargetsParams
from kd_pipeline.soft_targets.store import SoftTargets
from kd_pipeline.training import engine
from kd_pipeline.training.settings import ArmParams, StudentParams, Training
from kd_pipeline.training.stacked import MAX_MACS_PER_STEP, stack, unstack, why_alone
from kd_pipeline.training.students import train_students
from kd_pipeline.training.teacher_sources import CachedTeacher
from kd_pipeline.views import ViewRenderer
from kd_pipeline.views.settings import ViewsParams

SHAPE = (2, 6, 6)
PREPROCESSING = Preprocessing(SHAPE, (0.4, 0.5), (0.3, 0.2))
MLP = {"name": "mlp", "arguments": {"hidden": [8]}}
CNN = {"name": "small_cnn", "arguments": {"channels": [4, 6]}}
USUAL = {
    "num_epochs": 3,
    "batch_size": 16,
    "device": "cpu",
    "precision": "float32",
    "optimiser": {"name": "AdamW", "arguments": {"lr": 0.01}},
}


def networks(make: Callable[[], nn.Sequential], count: int = 3) -> list[Classifier]:
    """Classifiers of one architecture with other weights, and other statistics of batch norm."""
    made = []
    for number in range(count):
        with seeded(number):
            network = make()
            for layer in network:
                if isinstance(layer, nn.BatchNorm2d):
                    nn.init.uniform_(layer.running_mean)
                    nn.init.uniform_(layer.weight)
            made.append(Classifier(network, PREPROCESSING))
    return made


def head(num_features: int) -> list[nn.Module]:
    return [nn.Flatten(), nn.Linear(num_features, 3)]


LAYERS: dict[str, Callable[[], nn.Sequential]] = {
    "linear": lambda: nn.Sequential(*head(72)),
    "linear without bias": lambda: nn.Sequential(nn.Flatten(), nn.Linear(72, 3, bias=False)),
    "mlp": lambda: nn.Sequential(nn.Flatten(), nn.Linear(72, 5), nn.GELU(), nn.Linear(5, 3)),
    "nested": lambda: nn.Sequential(nn.Sequential(nn.Conv2d(2, 4, 3)), *head(64)),
    "convolution": lambda: nn.Sequential(nn.Conv2d(2, 4, 3, stride=2, padding=1), *head(36)),
    "grouped convolution": lambda: nn.Sequential(nn.Conv2d(2, 4, 3, groups=2), *head(64)),
    "circular padding": lambda: nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular", bias=False), *head(108)
    ),
    "batch norm": lambda: nn.Sequential(nn.BatchNorm2d(2), *head(72)),
    "cumulative batch norm": lambda: nn.Sequential(nn.BatchNorm2d(2, momentum=None), *head(72)),
    "max pool": lambda: nn.Sequential(nn.MaxPool2d(2), *head(18)),
    "average pool": lambda: nn.Sequential(nn.AvgPool2d(3), nn.ReLU(), *head(8)),
    "whole": lambda: nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(4, 5, 3, padding=1), nn.BatchNorm2d(5), nn.GELU(), nn.AdaptiveAvgPool2d(1),
        *head(5),
    ),
}  # fmt: skip


def batches(count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 16, *SHAPE), generator=generator, dtype=torch.uint8)
    return pixels, torch.randint(0, 3, (count, 16), generator=generator)


@pytest.mark.parametrize("name", LAYERS)
def test_logits_gradients_and_statistics_are_those_of_each_alone(name: str) -> None:
    classifiers = networks(LAYERS[name])
    assert why_alone(classifiers[0], Training(**USUAL)) is None
    stacked, (pixels, labels) = stack(classifiers), batches(3)
    logits = stacked.train()(pixels.flatten(0, 1))
    losses = F.cross_entropy(logits, labels.flatten(), reduction="none").view(3, -1).mean(dim=1)
    losses.sum().backward()
    for one, its_pixels, its_labels, its_logits in zip(
        classifiers, pixels, labels, logits.chunk(3), strict=True
    ):
        alone = one.train()(its_pixels)
        torch.testing.assert_close(its_logits, alone, rtol=1e-6, atol=1e-6)
        F.cross_entropy(alone, its_labels).backward()
    gradients = {name: value.grad for name, value in stacked.network.network.named_parameters()}
    for at, one in enumerate(classifiers):
        for name, parameter in one.network.named_parameters():
            own = gradients[name].chunk(3)[at]
            torch.testing.assert_close(own, parameter.grad, rtol=0, atol=1e-6)
    statistics = [{k: v.clone() for k, v in one.network.named_buffers()} for one in classifiers]
    unstack(stacked, classifiers)
    for one, alone in zip(classifiers, statistics, strict=True):
        for name, value in one.network.named_buffers():
            torch.testing.assert_close(value, alone[name], rtol=1e-6, atol=1e-6)


def test_a_stack_gives_back_the_very_weights_that_it_took() -> None:
    classifiers, blank = networks(LAYERS["whole"]), networks(LAYERS["whole"])
    for one in blank:
        for parameter in one.parameters():
            nn.init.zeros_(parameter)
    unstack(stack(classifiers), blank)
    for one, other in zip(classifiers, blank, strict=True):
        for name, value in one.network.state_dict().items():
            assert torch.equal(other.network.state_dict()[name], value)


@pytest.mark.parametrize(
    ("make", "training", "why"),
    [
        (LAYERS["mlp"], {"max_gradient_norm": 1.0}, "`training.max_gradient_norm` is set"),
        (LAYERS["mlp"], {"max_weight_norm": 1.0}, "`training.max_weight_norm` is set"),
        (LAYERS["mlp"], {"early_stopping": {}}, "`training.early_stopping` is set"),
        (LAYERS["mlp"], {"schedule": {"name": "ReduceLROnPlateau"}}, "follows the validation"),
        (LAYERS["mlp"], {"optimiser": {"name": "Adafactor"}}, "Adafactor does not update each"),
        (LAYERS["mlp"], {"batch_size": 2**20}, "multiply-accumulates a step are too many"),
        (lambda: nn.Sequential(nn.Dropout(0.1), *head(72)), {}, "no Dropout"),
        (lambda: nn.Sequential(nn.GroupNorm(1, 2), *head(72)), {}, "no GroupNorm"),
        (lambda: nn.Sequential(*head(72), nn.BatchNorm1d(3)), {}, "no BatchNorm1d"),
        (lambda: nn.Sequential(nn.Conv2d(2, 3, 6)), {}, "Sequential is no sequence"),
        (lambda: nn.Sequential(Residual(), *head(72)), {}, "no Residual"),
    ],
)  # fmt: skip
def test_what_cannot_be_stacked_names_its_reason(
    make: Callable[[], nn.Sequential], training: dict[str, Any], why: str
) -> None:
    (classifier,) = networks(make, 1)
    assert why in (why_alone(classifier, Training(**USUAL | training)) or "")


class Residual(nn.Module):
    def forward(self, features: Tensor) -> Tensor:
        return features + features.flip(0)


def test_frozen_and_tied_weights_are_not_stacked() -> None:
    frozen, tied = networks(LAYERS["mlp"], 2)
    frozen.network[1].weight.requires_grad_(False)
    assert why_alone(frozen, Training(**USUAL)) == "some layers are frozen"
    square = nn.Linear(3, 3)
    tied.network.extend([square, nn.ReLU(), square])
    assert why_alone(tied, Training(**USUAL)) == "some weights are tied"


def test_the_size_counts_the_batch() -> None:
    (classifier,) = networks(LAYERS["linear"], 1)
    most = MAX_MACS_PER_STEP // (72 * 3)
    assert why_alone(classifier, Training(**USUAL | {"batch_size": most})) is None
    assert why_alone(classifier, Training(**USUAL | {"batch_size": most + 1})) is not None


def run(
    data: LabelledImages,
    folder: Path,
    cache: SoftTargets | None = None,
    *,
    model: dict[str, Any] = MLP,
    views: ViewsParams | None = None,
    arm: dict[str, Any] | None = None,
    **training: Any,
) -> tuple[list[ModelCheckpoint], pd.DataFrame]:
    student = StudentParams(num_replicates=3, model=model, training=USUAL | training)
    teacher = None
    if cache is not None:
        fingerprints = cache.manifest.provenance.teacher_fingerprints
        teacher = CachedTeacher(cache, SoftTargetsParams(), fingerprints)
    settings = ArmParams(soft_weight=0.0 if cache is None else 0.5, **arm or {})
    return train_students(
        data,
        student,
        settings,
        views or ViewsParams(),
        teacher=teacher,
        states=StateFolder(folder),
    )


def timeless(history: pd.DataFrame) -> pd.DataFrame:
    return history.drop(columns="train/examples_per_second")


SHIFTED = ViewsParams(seed=1, num_views=2, transforms=[{"name": "shift", "max_pixels": 1}])


def cache_of_views(
    data: LabelledImages, folder: Path, make_cache: Callable[..., SoftTargets]
) -> SoftTargets:
    count = len(ids_with_role(data.splits, "transfer"))
    logits = np.random.default_rng(0).normal(0, 2, (1, 2, count, 3)).astype(np.float32)
    made = {"view_policy": SHIFTED.policy.description, "num_views": 2}
    return make_cache(folder, data.images, data.splits, logits=logits, **made)


def test_a_loss_over_a_batch_is_that_of_each_replicates_own_batch(
    data: LabelledImages, tmp_path: Path, make_cache: Callable[..., SoftTargets]
) -> None:
    cache = cache_of_views(data, tmp_path / "cache", make_cache)
    checkpoints, _ = run(data, tmp_path, cache, views=SHIFTED, arm={"soft_loss": "dist"})
    assert all("stacked_replicates" not in checkpoint.facts for checkpoint in checkpoints)


@pytest.mark.parametrize("model", [MLP, CNN], ids=["mlp", "cnn"])
@pytest.mark.parametrize("taught", [False, True], ids=["labels", "cache"])
def test_a_stacked_arm_is_the_arm_trained_one_by_one_up_to_rounding(
    data: LabelledImages,
    tmp_path: Path,
    make_cache: Callable[..., SoftTargets],
    model: dict[str, Any],
    taught: bool,
) -> None:
    """The same weights after 15 steps, and the same curves: so are batches, views and targets."""
    cache = cache_of_views(data, tmp_path / "cache", make_cache) if taught else None
    settings = {"model": model, "views": SHIFTED, "arm": {"confidence_penalty": 0.3}}
    together, curves = run(data, tmp_path / "a", cache, **settings)
    one_by_one, its_curves = run(data, tmp_path / "b", cache, **settings, stack_replicates="never")
    for stacked, alone in zip(together, one_by_one, strict=True):
        assert stacked.facts["stacked_replicates"] == 3
        assert "stacked_replicates" not in alone.facts
        for name, value in alone.state.items():
            torch.testing.assert_close(stacked.state[name], value, rtol=1e-3, atol=1e-4)
    pd.testing.assert_frame_equal(timeless(curves), timeless(its_curves), rtol=1e-3, atol=1e-4)


def test_each_replicate_has_the_batches_and_views_that_it_has_alone(
    data: LabelledImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[Tensor, Tensor]] = []

    class Spy(ViewRenderer):
        def draw(self, positions: Tensor, views: Tensor | int) -> Any:
            drawn.append((self.pixels.example_ids[positions], torch.as_tensor(views)))
            return super().draw(positions, views)

    monkeypatch.setattr(engine, "ViewRenderer", Spy)
    run(data, tmp_path, views=SHIFTED)
    together = [torch.cat(parts) for parts in zip(*drawn, strict=True)]
    drawn.clear()
    run(data, tmp_path, views=SHIFTED, stack_replicates="never")
    alone = [torch.cat(parts) for parts in zip(*drawn, strict=True)]
    for stacked, own in zip(together, alone, strict=True):
        assert torch.equal(torch.cat(stacked.chunk(3, dim=1)), own)


class KilledError(Exception):
    """Stands for the end of the process."""


@pytest.mark.parametrize("model", [MLP, CNN], ids=["mlp", "cnn"])
@pytest.mark.parametrize("killed_by", [EpochEnded, TrainingEnded])
def test_a_killed_stack_goes_on_bit_for_bit(
    data: LabelledImages, tmp_path: Path, model: dict[str, Any], killed_by: type
) -> None:
    unbroken, curves = run(data, tmp_path / "unbroken", model=model)

    def kill(event: Event) -> None:
        if isinstance(event, killed_by) and (event.replicate, getattr(event, "epoch", 3)) == (1, 3):
            raise KilledError

    states = tmp_path / "killed"
    with pytest.raises(KilledError), listening(kill):
        run(data, states, model=model, checkpoint_every=2)
    (state,) = states.iterdir()
    found = StateFolder(states).load(state.name)
    assert found is not None
    found["record"]["seconds"] += 3000.0
    StateFolder(states).save(state.name, found)
    resumed, again = run(data, states, model=model, checkpoint_every=2)
    assert [a.fingerprint for a in resumed] == [b.fingerprint for b in unbroken]
    pd.testing.assert_frame_equal(timeless(curves), timeless(again), check_exact=True)
    # It did not start over, and each replicate takes its share of the seconds.
    assert all(1000 < one.facts["costs"]["cost/train_seconds"] < 1100 for one in resumed)


def test_events_are_those_of_each_replicate(data: LabelledImages, tmp_path: Path) -> None:
    events: list[Event] = []
    with listening(events.append):
        _, history = run(data, tmp_path, num_epochs=2)
    kinds = [(type(event), event.replicate) for event in events]  # type: ignore[union-attr]
    each = [0, 1, 2]
    assert kinds == [
        *((TrainingStarted, one) for one in each),
        *((EpochEnded, one) for one in each * 2),
        *((TrainingEnded, one) for one in each),
    ]
    assert list(history["replicate"]) == [0, 0, 1, 1, 2, 2]
    assert list(history["epoch"]) == [1, 2] * 3


def test_a_stacked_training_is_another_one_than_each_alone(
    data: LabelledImages, tmp_path: Path
) -> None:
    """Its state is never taken for theirs, and the setting itself is no part of their identity."""
    run(data, tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    run(data, tmp_path, stack_replicates="never")
    assert len(list(tmp_path.iterdir())) == 1 + 3
    run(data, tmp_path, max_gradient_norm=1e9)
    run(data, tmp_path, max_gradient_norm=1e9, stack_replicates="never")
    assert len(list(tmp_path.iterdir())) == 1 + 3 + 3
    assert "stack_replicates" not in json.dumps(Training(**USUAL).model_dump())


def test_what_trains_one_by_one_says_why(
    data: LabelledImages, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    run(data, tmp_path, num_epochs=1, max_gradient_norm=1.0)
    assert "3 models are not stacked: `training.max_gradient_norm` is set" in caplog.text


def test_a_checkpoint_of_a_stack_loads_alone_and_gives_the_same_logits(
    data: LabelledImages, tmp_path: Path
) -> None:
    checkpoints, history = run(data, tmp_path, model=CNN)
    ids = data.ids("validation")
    pixels, labels = data.images.take(ids), data.labels_of(ids)
    classifiers = [build_classifier(checkpoint) for checkpoint in checkpoints]
    stacked = stack(classifiers).eval()
    with torch.no_grad():
        logits = stacked(pixels.repeat(3, 1, 1, 1)).chunk(3)
        for replicate, (classifier, its) in enumerate(zip(classifiers, logits, strict=True)):
            torch.testing.assert_close(classifier(pixels), its, rtol=1e-5, atol=1e-5)
            last = history[history["replicate"] == replicate].iloc[-1]
            found = float((its.argmax(dim=1) == labels).double().mean())
            assert last["validation/accuracy"] == pytest.approx(found)


def test_one_that_diverges_stops_them_all(data: LabelledImages, tmp_path: Path) -> None:
    wild = {"name": "SGD", "arguments": {"lr": 1e30}}
    with pytest.raises(TrainingDivergedError, match=r"became (nan|inf) in epoch \d"):
        run(data, tmp_path, optimiser=wild)


def test_bfloat16_trains_too(data: LabelledImages, tmp_path: Path) -> None:
    _, history = run(data, tmp_path, model=CNN, precision="bfloat16", num_epochs=10)
    last = history[history["epoch"] == 10]
    assert (last["train/loss"].to_numpy() < history["train/loss"][0] * 0.9).all()
