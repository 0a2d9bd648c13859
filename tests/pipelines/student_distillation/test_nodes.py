"""The students' nodes: what each hands on, and that only the right soft targets are taken."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from kd_pipeline.data.dataset import LabelledImages
from kd_pipeline.errors import ParameterError, StaleArtefactError, TeacherTooWeakError
from kd_pipeline.events import Event, TrainingStarted
from kd_pipeline.labelling.settings import SoftTargetCachingParams
from kd_pipeline.labelling.soft_targets import label_transfer_set
from kd_pipeline.memory import MemoryBudget
from kd_pipeline.models.checkpoint import ModelCheckpoint
from kd_pipeline.models.state_folder import StateFolder
from kd_pipeline.pipelines.student_distillation.nodes import (
    make_trainer_of_teaching_student,
    train_on_labels,
    train_on_live_teacher,
    train_on_soft_targets,
)
from kd_pipeline.randomness import derive_seed
from kd_pipeline.soft_targets.parts_folder import PartsFolder
from kd_pipeline.soft_targets.settings import SoftTargetsParams
from kd_pipeline.soft_targets.store import SoftTargets
from kd_pipeline.training.settings import ArmParams, Quantisation, StudentParams
from kd_pipeline.views.settings import ViewsParams

STUDENT = StudentParams(
    num_replicates=2,
    model={"name": "mlp", "arguments": {"hidden": [8]}},
    training={"num_epochs": 2, "batch_size": 16, "device": "cpu", "checkpoint_every": 1},
)
CACHING = SoftTargetCachingParams(batch_size=64, device="cpu")

Trained = tuple[list[ModelCheckpoint], pd.DataFrame]
MakeCache = Callable[..., SoftTargets]


@pytest.fixture
def shared(tables: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """What every student's node takes."""
    return tables | {
        "training_states": StateFolder(tmp_path / "states"),
        "memory_budget": MemoryBudget(2**30),
        "student": STUDENT,
        "views": ViewsParams(),
        "soft_target_params": SoftTargetsParams(),
    }


@pytest.fixture
def cached(
    shared: dict[str, Any], data: LabelledImages, make_cache: MakeCache, tmp_path: Path
) -> dict[str, Any]:
    """What the node of a student that learns from a cache takes."""
    cache = make_cache(tmp_path / "cache", data.images, data.splits)
    return shared | {"soft_targets": cache, "teacher_card": {"fingerprints": ["t"]}}


def distil(cached: dict[str, Any], **arm: Any) -> Trained:
    return train_on_soft_targets(**cached, arm=ArmParams(**{"soft_weight": 1.0} | arm))


def started(events: list[Event]) -> list[TrainingStarted]:
    return [event for event in events if isinstance(event, TrainingStarted)]


def test_replicates_are_trained_and_their_states_outlive_the_node(
    cached: dict[str, Any], tmp_path: Path
) -> None:
    checkpoints, history = distil(cached)
    assert len({checkpoint.fingerprint for checkpoint in checkpoints}) == 2
    assert history[["replicate", "epoch"]].to_numpy().tolist() == [[0, 1], [0, 2], [1, 1], [1, 2]]
    # One of both, until the checkpoints are on disk: tests/hooks/test_resume_hook.py.
    assert len(list((tmp_path / "states").iterdir())) == 1
    json.dumps(checkpoints[0].facts, allow_nan=False)


def test_parameters_have_the_same_names_in_every_arm(
    shared: dict[str, Any], cached: dict[str, Any], events: list[Event]
) -> None:
    train_on_labels(**shared, arm=ArmParams())
    distil(cached, temperature=4.0)
    trainings = started(events)
    assert len(trainings) == 4
    assert len({tuple(sorted(event.parameters)) for event in trainings}) == 1
    assert trainings[2].parameters["temperature"] == 4.0


@pytest.mark.parametrize(
    "arm",
    [
        {"temperature": 4.0},
        {"soft_weight": 0.5},
        {"soft_loss": "logit_mse"},
        {"soft_weight": 0.5, "label_smoothing": 0.2},
        {"soft_weight": 1.0, "soft_loss": "pseudo_label"},
    ],
)
def test_every_setting_of_an_arm_matters(cached: dict[str, Any], arm: dict[str, Any]) -> None:
    first, _ = distil(cached)
    other, _ = distil(cached, **arm)
    assert first[0].fingerprint != other[0].fingerprint


def test_smoothing_matters_without_a_teacher_too(shared: dict[str, Any]) -> None:
    first, _ = train_on_labels(**shared, arm=ArmParams())
    other, _ = train_on_labels(**shared, arm=ArmParams(label_smoothing=0.1))
    assert first[0].fingerprint != other[0].fingerprint


def test_soft_targets_need_no_labels(
    cached: dict[str, Any], data: LabelledImages, make_cache: MakeCache, tmp_path: Path
) -> None:
    splits = cached["splits"].assign(use_label=False)
    cache = make_cache(tmp_path / "unlabelled", data.images, splits)
    checkpoints, _ = distil(cached | {"splits": splits, "soft_targets": cache})
    assert len(checkpoints) == 2


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"teacher_fingerprints": ("older",)}, "teacher"),
        ({"images_fingerprint": "older"}, "images"),
        ({"splits_fingerprint": "older"}, "splits"),
        ({"class_names": ("low", "high", "middle")}, "class names"),
        ({"view_policy": {"seed": 1, "transforms": []}}, "view policy"),
        ({"num_views": 2}, "number of views"),
    ],
)
def test_a_cache_of_something_else_is_refused_naming_which(
    cached: dict[str, Any],
    data: LabelledImages,
    make_cache: MakeCache,
    tmp_path: Path,
    changes: dict[str, Any],
    what: str,
    events: list[Event],
) -> None:
    stale = make_cache(tmp_path / "stale", data.images, data.splits, **changes)
    with pytest.raises(StaleArtefactError, match=f"this run's {what}"):
        distil(cached | {"soft_targets": stale})
    assert events == []


def test_a_live_teacher_below_the_bar_teaches_no_student(
    shared: dict[str, Any], untrained: Callable[..., ModelCheckpoint], events: list[Event]
) -> None:
    live = shared | {"checkpoints": [untrained(5)], "arm": ArmParams(soft_weight=1.0)}
    bars = [CACHING.model_copy(update={"min_validation_accuracy": bar}) for bar in (0.99, 0.0)]
    with pytest.raises(TeacherTooWeakError, match=r"min_validation_accuracy` is 0\.99"):
        train_on_live_teacher(**live, caching=bars[0])
    assert not started(events)
    trained, _ = train_on_live_teacher(**live, caching=bars[1])
    assert len(trained) == 2


@pytest.mark.parametrize("bar", [None, 0.5])
def test_a_teacher_of_imported_logits_cannot_run_live(
    shared: dict[str, Any], bar: float | None
) -> None:
    caching = CACHING.model_copy(update={"min_validation_accuracy": bar})
    live = shared | {"checkpoints": [], "arm": ArmParams(soft_weight=1.0)}
    with pytest.raises(ParameterError, match=r"`teacher\.given` must be a model"):
        train_on_live_teacher(**live, caching=caching)


def test_a_live_teacher_teaches_what_its_cache_would(
    shared: dict[str, Any],
    data: LabelledImages,
    untrained: Callable[..., ModelCheckpoint],
    tmp_path: Path,
) -> None:
    """Through the nodes; tests/training/test_teacher_sources.py compares logit by logit."""
    teacher, arm = untrained(5), ArmParams(soft_weight=1.0)
    live, _ = train_on_live_teacher(**shared, checkpoints=[teacher], arm=arm, caching=CACHING)
    cache = label_transfer_set(
        [teacher], data, PartsFolder(tmp_path / "parts"), CACHING, ViewsParams()
    )
    card = {"fingerprints": [teacher.fingerprint]}
    cached, _ = train_on_soft_targets(**shared, soft_targets=cache, teacher_card=card, arm=arm)
    for ours, theirs in zip(live, cached, strict=True):
        for name, weights in ours.state.items():
            torch.testing.assert_close(weights, theirs.state[name], rtol=0.01, atol=0.01)


def test_the_same_again_gives_the_same(cached: dict[str, Any]) -> None:
    first, second = (distil(cached) for _ in range(2))
    assert [c.fingerprint for c in first[0]] == [c.fingerprint for c in second[0]]


def teach(name: str, cached: dict[str, Any], **arm: Any) -> Any:
    """Train a student that teaches others."""
    train = make_trainer_of_teaching_student(name, train_on_soft_targets)
    return train(**cached, arm=ArmParams(**{"soft_weight": 1.0} | arm))


def test_a_student_that_teaches_starts_from_weights_of_its_own_and_has_a_card(
    cached: dict[str, Any],
) -> None:
    (compared, *_), _ = distil(cached)
    (first, *others), history, card = teach("generation_1", cached)
    (second, *_), *_ = teach("generation_2", cached)
    assert len({c.fingerprint for c in (compared, first, second)}) == 3
    seed = derive_seed(STUDENT.seed, "hop", "generation_1")
    (same, *_), _ = distil(cached | {"student": STUDENT.model_copy(update={"seed": seed})})
    assert same.fingerprint == first.fingerprint
    assert len(history) == 2 * 2
    assert card == {
        "fingerprints": [c.fingerprint for c in (first, *others)],
        "architectures": ["mlp", "mlp"],
        "class_names": ["low", "middle", "high"],
        "labels": first.facts["labels"],
    }


def test_a_student_that_learns_from_labels_may_teach_too(shared: dict[str, Any]) -> None:
    train = make_trainer_of_teaching_student("generation_0", train_on_labels)
    int8 = STUDENT.model_copy(update={"quantisation": Quantisation(name="int8")})
    checkpoints, _, card = train(**shared | {"student": int8}, arm=ArmParams())
    assert checkpoints[0].facts["teacher"] == []
    assert checkpoints[0].quantised_state is None  # It teaches in float.
    assert card["fingerprints"] == [checkpoint.fingerprint for checkpoint in checkpoints]


def test_a_student_learns_from_the_cache_of_the_student_whose_card_it_gets_and_no_other(
    cached: dict[str, Any], data: LabelledImages, tmp_path: Path, events: list[Event]
) -> None:
    """The replicates of an assistant are one ensemble, averaged as the parameters have it."""
    own = {"model": {"name": "mlp", "arguments": {"hidden": [4]}}, "num_replicates": 3}
    assistant, _, card = teach("assistant", cached, **own)
    assert [c.arguments for c in assistant] == [{"hidden": [4]}] * 3
    parts = PartsFolder(tmp_path / "parts")
    cache = label_transfer_set(assistant, data, parts, CACHING, ViewsParams())
    taught = cached | {"soft_targets": cache, "teacher_card": card}
    taught["soft_target_params"] = SoftTargetsParams(ensemble_average="arithmetic")
    (student, *_), _ = distil(taught)
    assert student.facts["teacher"] == [c.fingerprint for c in assistant]
    shares = np.full(3, 1 / 3).tolist()
    assert student.facts["teacher_ensemble"] == {"kind": "arithmetic", "shares": shares}
    events.clear()
    for stale in (cached | {"teacher_card": card}, cached | {"soft_targets": cache}):
        with pytest.raises(StaleArtefactError, match="this run's teacher"):
            distil(stale)
    assert not started(events)
