"""Laws that a comparison of arms rests on, held on students that were really trained."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from kd_pipeline.data.dataset import LabelledImages
from kd_pipeline.data.images import ImageSet
from kd_pipeline.data.settings import TransferSplitParams
from kd_pipeline.data.splits import ids_with_role, split_examples, student_rows
from kd_pipeline.errors import StaleArtefactError
from kd_pipeline.evaluation.freshness import check_paired
from kd_pipeline.events import EpochEnded, Event, listening
from kd_pipeline.models.checkpoint import ModelCheckpoint, write_checkpoint
from kd_pipeline.models.preprocessing import measure_preprocessing
from kd_pipeline.models.settings import GivenCheckpoint
from kd_pipeline.models.state_folder import StateFolder
from kd_pipeline.soft_targets.encoding import Encoding
from kd_pipeline.soft_targets.settings import SoftTargetsParams
from kd_pipeline.soft_targets.store import SoftTargets
from kd_pipeline.training import engine
from kd_pipeline.training.settings import ArmParams, StudentParams
from kd_pipeline.training.students import train_students
from kd_pipeline.training.teacher_sources import CachedTeacher
from kd_pipeline.training.teachers import adopt_given
from kd_pipeline.views import ViewRenderer
from kd_pipeline.views.settings import ViewsParams

MakeCache = Callable[..., SoftTargets]
TRAINING = {"num_epochs": 2, "batch_size": 16, "device": "cpu", "precision": "float32"}


def train(
    data: LabelledImages,
    folder: Path,
    cache: SoftTargets | None = None,
    *,
    training: dict[str, Any] | None = None,
    temperature: float = 4.0,
    **reading: Any,
) -> list[ModelCheckpoint]:
    """One student from labels, or from a cache that is read as `reading` states."""
    teacher = None
    if cache is not None:
        fingerprints = cache.manifest.provenance.teacher_fingerprints
        teacher = CachedTeacher(cache, SoftTargetsParams(**reading), fingerprints)
    student = StudentParams(
        num_replicates=1,
        model={"name": "mlp", "arguments": {"hidden": [8]}},
        training=TRAINING | (training or {}),
    )
    arm = ArmParams(soft_weight=0.0 if cache is None else 1.0, temperature=temperature)
    checkpoints, _ = train_students(
        data, student, arm, ViewsParams(), teacher=teacher, states=StateFolder(folder)
    )
    return checkpoints


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Example ids [steps, batch] of every chunk that is trained on."""
    drawn: list[Tensor] = []

    class Spy(ViewRenderer):
        def draw(self, positions: Tensor, views: Tensor | int) -> Any:
            drawn.append(self.pixels.example_ids[positions])
            return super().draw(positions, views)

    monkeypatch.setattr(engine, "ViewRenderer", Spy)
    return drawn


@pytest.fixture(scope="module")
def equal(images: ImageSet, examples: pd.DataFrame) -> LabelledImages:
    """The transfer set is the teacher's training set, with its labels."""
    params = TransferSplitParams(
        test_fraction=0.3,
        validation_fraction=0.1,
        teacher={"fraction": 1.0},
        transfer={"relation": "equal"},
    )
    splits = split_examples(examples, images.class_names, params)
    return LabelledImages(images, examples, splits)


def test_all_arms_take_the_same_batches_step_by_step(
    equal: LabelledImages, tmp_path: Path, batches: list[Tensor], make_cache: MakeCache
) -> None:
    train(equal, tmp_path)
    labels = [batches.pop(0) for _ in range(len(batches))]
    train(equal, tmp_path, make_cache(tmp_path / "cache", equal.images, equal.splits))
    assert len(labels) == len(batches) == TRAINING["num_epochs"]
    assert all(torch.equal(*pair) for pair in zip(labels, batches, strict=True))
    assert not torch.equal(batches[0], batches[1])


@pytest.mark.parametrize(
    "changed",
    [
        {"num_epochs": 3},
        {"batch_size": 8},
        {"optimiser": {"name": "SGD", "arguments": {"lr": 0.1}}},
        {"schedule": {"name": "constant"}},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_arms_that_were_trained_otherwise_are_refused(
    equal: LabelledImages, tmp_path: Path, changed: dict[str, Any]
) -> None:
    usual = train(equal, tmp_path / "usual")
    check_paired({"student_baseline": usual, "student_kd": train(equal, tmp_path / "again")})
    other = train(equal, tmp_path / "other", training=changed)
    with pytest.raises(StaleArtefactError, match=r"must be trained alike .* another training"):
        check_paired({"student_baseline": usual, "student_kd": other})


def other_test_pixels(data: LabelledImages) -> LabelledImages:
    """The same data with white test images."""
    pixels = np.array(data.images.pixels)
    pixels[data.images.positions(ids_with_role(data.splits, "test"))] = 255
    images = ImageSet(data.images.example_ids, pixels, data.images.class_names)
    return replace(data, images=images)


def test_students_normalise_by_their_training_rows_alone(
    data: LabelledImages, tmp_path: Path, make_cache: MakeCache
) -> None:
    """The same in an arm that trains on a few of them, and whatever the test images hold."""
    ids = student_rows(data.splits)["example_id"].to_numpy()
    expected = measure_preprocessing([data.images.take(ids)])
    (baseline,) = train(data, tmp_path / "a")
    (distilled,) = train(data, tmp_path / "b", make_cache(tmp_path / "c", data.images, data.splits))
    (unseen,) = train(other_test_pixels(data), tmp_path / "d")
    assert baseline.facts["num_training_rows"] < distilled.facts["num_training_rows"]
    assert baseline.preprocessing == distilled.preprocessing == unseen.preprocessing == expected


class WatchedImages(ImageSet):
    """Notes which rows of pixels are read."""

    def __init__(self, images: ImageSet) -> None:
        super().__init__(images.example_ids, images.pixels, images.class_names)
        self.read: set[int] = set()

    def take_rows(self, rows: Any) -> Tensor:
        self.read |= set(self.example_ids[rows.flatten()].tolist())
        return super().take_rows(rows)


def test_adopting_a_given_teacher_reads_no_test_pixel(data: LabelledImages, tmp_path: Path) -> None:
    (trained,) = train(data, tmp_path / "states")
    write_checkpoint(trained, tmp_path / "given")
    watched = replace(data, images=WatchedImages(data.images))
    adopt_given(
        watched, [GivenCheckpoint(kind="checkpoint", folder=str(tmp_path / "given"))], [None]
    )
    assert isinstance(watched.images, WatchedImages)
    assert len(watched.images.read) > 0
    assert not watched.images.read & set(data.ids("test").tolist())


def logits_of(data: LabelledImages, num_members: int, seed: int = 0) -> Any:
    """Random logits [members, 1, examples, classes] of the transfer set."""
    shape = (num_members, 1, len(ids_with_role(data.splits, "transfer")), 3)
    return np.random.default_rng(seed).normal(0, 3, shape).astype(np.float32)


def weights(checkpoints: list[ModelCheckpoint]) -> Tensor:
    return torch.cat([value.flatten() for value in checkpoints[0].state.values()])


def test_every_way_to_read_a_cache_trains_another_student(
    data: LabelledImages, tmp_path: Path, make_cache: MakeCache
) -> None:
    pair = make_cache(
        tmp_path / "pair",
        data.images,
        data.splits,
        logits=logits_of(data, 2),
        teacher_fingerprints=("t", "u"),
    )
    top = make_cache(
        tmp_path / "top",
        data.images,
        data.splits,
        logits=logits_of(data, 1),
        encoding=Encoding(1, 4.0),
    )
    readings = [
        (pair, {}),
        (pair, {"member_weights": (3.0, 1.0)}),
        (pair, {"ensemble_average": "arithmetic"}),
        (top, {}),
        (top, {"tail": "uniform"}),
    ]
    found = [
        weights(train(data, tmp_path / str(at), cache, **reading))
        for at, (cache, reading) in enumerate(readings)
    ]
    assert len(torch.stack(found).unique(dim=0)) == len(readings)


class KilledError(Exception):
    """Stands for the end of the process."""


def test_a_killed_training_does_not_go_on_with_another_cache(
    data: LabelledImages, tmp_path: Path, make_cache: MakeCache
) -> None:
    """The same logits, of which another number is kept."""
    first, second = (
        make_cache(
            tmp_path / f"top-{k}",
            data.images,
            data.splits,
            logits=logits_of(data, 1),
            encoding=Encoding(k, 4.0),
        )
        for k in (1, 2)
    )

    def kill(event: Event) -> None:
        if isinstance(event, EpochEnded) and event.epoch == 2:
            raise KilledError

    often = {"checkpoint_every": 1}
    with pytest.raises(KilledError), listening(kill):
        train(data, tmp_path / "killed", first, training=often)
    assert list((tmp_path / "killed").iterdir())
    resumed = train(data, tmp_path / "killed", second, training=often)
    fresh = train(data, tmp_path / "fresh", second, training=often)
    assert torch.equal(weights(resumed), weights(fresh))
