"""Arms: paired by construction, each learning from just the rows it may."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from kd_pipeline.data.images import ImageSet
from kd_pipeline.data.splits import ids_with_role, split_examples, split_fingerprint
from kd_pipeline.errors import DataError, ParameterError, StaleArtefactError
from kd_pipeline.losses.objective import Objective
from kd_pipeline.models.checkpoint import ModelCheckpoint
from kd_pipeline.models.state_folder import StateFolder
from kd_pipeline.soft_targets.ensemble import Mixing
from kd_pipeline.soft_targets.store import SoftTargets
from kd_pipeline.training import students
from kd_pipeline.training.data import TrainingData
from kd_pipeline.training.engine import TrainingPlan
from kd_pipeline.training.settings import TrainingSettings
from kd_pipeline.training.students import train_students
from kd_pipeline.training.teacher_sources import CachedTeacher
from kd_pipeline.views import ViewPolicy

PSEUDO = Objective(soft_weight=1.0, soft_loss="pseudo_label")


@pytest.fixture
def cache(make_cache: Callable[..., SoftTargets], tmp_path: Path) -> Callable[..., SoftTargets]:
    """Write another cache in a folder of its own every time it is called."""
    numbers = itertools.count()

    def make(images: ImageSet, splits: pd.DataFrame, **changes: Any) -> SoftTargets:
        return make_cache(tmp_path / f"cache-{next(numbers)}", images, splits, **changes)

    return make


Cache = Callable[..., SoftTargets]


def run(
    data: TrainingData, folder: Path, soft_targets: SoftTargets | None = None, **changes: Any
) -> tuple[list[ModelCheckpoint], pd.DataFrame]:
    arguments: dict[str, Any] = {
        "teacher": None if soft_targets is None else CachedTeacher(soft_targets),
        "objective": Objective(soft_weight=0.0 if soft_targets is None else 1.0),
        "model": {"name": "mlp", "arguments": {"hidden": [8]}},
        "settings": TrainingSettings(num_epochs=2, batch_size=16),
        "seed": 0,
        "num_replicates": 2,
        "policy": ViewPolicy(),
        "num_views": 1,
        "parameters": {"temperature": 1.0},
        "states": StateFolder(folder),
    }
    return train_students(data, **(arguments | changes))


@pytest.fixture
def data(images: ImageSet, examples: pd.DataFrame, splits: pd.DataFrame) -> TrainingData:
    return TrainingData(images, examples, splits)


@pytest.fixture
def plans(monkeypatch: pytest.MonkeyPatch) -> list[tuple[TrainingPlan, dict[str, torch.Tensor]]]:
    """Every plan that is trained, with the initial weights it starts from."""
    found: list[tuple[TrainingPlan, dict[str, torch.Tensor]]] = []
    real = students.train_classifier

    def spy(classifier: Any, plan: TrainingPlan, **rest: Any) -> Any:
        found.append((plan, {k: v.clone() for k, v in classifier.network.state_dict().items()}))
        return real(classifier, plan, **rest)

    monkeypatch.setattr(students, "train_classifier", spy)
    return found


def test_arms_share_weights_steps_seeds_and_views_by_construction(
    data: TrainingData, tmp_path: Path, plans: Any, cache: Cache
) -> None:
    soft = cache(data.images, data.splits)
    run(data, tmp_path)
    run(data, tmp_path, soft)
    run(data, tmp_path, soft, objective=PSEUDO)
    for replicate in range(2):
        arms = plans[replicate::2]
        for plan, weights in arms[1:]:
            first, initial = arms[0]
            assert all(torch.equal(weights[k], initial[k]) for k in initial)
            for name in ("seed", "steps_per_epoch", "settings", "policy", "num_views"):
                assert getattr(plan, name) == getattr(first, name)
    assert plans[0][0].seed != plans[1][0].seed


def test_each_arm_learns_from_the_rows_it_may(
    data: TrainingData, tmp_path: Path, plans: Any, cache: Cache
) -> None:
    teacher = ids_with_role(data.splits, "teacher_train").tolist()
    transfer = ids_with_role(data.splits, "transfer").tolist()
    soft = cache(data.images, data.splits)
    run(data, tmp_path, num_replicates=1)
    run(data, tmp_path, soft, num_replicates=1)
    run(data, tmp_path, soft, num_replicates=1, objective=Objective(soft_weight=0.5))
    run(data, tmp_path, soft, num_replicates=1, objective=PSEUDO)
    baseline, distilled, mixed, pseudo = (plan.rows for plan, _ in plans)
    assert baseline.example_ids.tolist() == teacher
    assert distilled.example_ids.tolist() == transfer == pseudo.example_ids.tolist()
    assert mixed.example_ids.tolist() == sorted({*teacher, *transfer})
    assert int((mixed.labels >= 0).sum()) == len(teacher)


def test_held_out_examples_reach_no_training(
    data: TrainingData, tmp_path: Path, plans: Any
) -> None:
    run(data, tmp_path, num_replicates=1)
    held_out = {
        *ids_with_role(data.splits, "test").tolist(),
        *ids_with_role(data.splits, "validation").tolist(),
    }
    assert not held_out & set(plans[0][0].rows.example_ids.tolist())
    watched = plans[0][0].validation
    assert len(watched.labels) == len(ids_with_role(data.splits, "validation"))


def test_arms_on_the_same_rows_see_the_same_batches(
    images: ImageSet, examples: pd.DataFrame, tmp_path: Path, plans: Any, cache: Cache
) -> None:
    splits = split_examples(
        examples,
        class_names=images.class_names,
        seed=0,
        test_fraction=0.3,
        validation_fraction=0.1,
        fraction=1.0,
        relation="equal",
    )
    data = TrainingData(images, examples, splits)
    run(data, tmp_path, num_replicates=1)
    run(data, tmp_path, cache(images, splits), num_replicates=1)
    (first, _), (second, _) = plans
    assert torch.equal(first.rows.example_ids, second.rows.example_ids)


def test_a_checkpoint_knows_what_it_was_made_from_and_holds_no_teacher(
    data: TrainingData, tmp_path: Path, cache: Cache
) -> None:
    checkpoints, history = run(data, tmp_path, cache(data.images, data.splits))
    facts = checkpoints[1].facts
    assert facts["teacher"] == ["t"]
    assert (facts["images"], facts["splits"]) == (
        data.images.fingerprint,
        split_fingerprint(data.splits),
    )
    assert (facts["replicate"], facts["epochs"], facts["steps"]) == (1, 2, 2 * 5)
    assert facts["costs"]["model/parameters"] == sum(
        v.numel() for v in checkpoints[1].state.values()
    )
    assert set(checkpoints[1].state) == {
        "layers.1.weight",
        "layers.1.bias",
        "layers.3.weight",
        "layers.3.bias",
    }
    assert list(history["replicate"]) == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"images_fingerprint": "other"}, "images"),
        ({"splits_fingerprint": "other"}, "splits"),
        ({"view_policy": {"seed": 1, "transforms": []}}, "view policy"),
        ({"class_names": ("low", "high", "middle")}, "class names"),
    ],
)
def test_a_stale_cache_is_refused_before_training(
    data: TrainingData, tmp_path: Path, plans: Any, changes: dict[str, Any], what: str, cache: Cache
) -> None:
    with pytest.raises(StaleArtefactError, match=f"do not match this run's {what}"):
        run(data, tmp_path, cache(data.images, data.splits, **changes))
    assert plans == []


def test_a_smoothed_teacher_above_temperature_one_is_warned_of(
    data: TrainingData, tmp_path: Path, caplog: pytest.LogCaptureFixture, cache: Cache
) -> None:
    soft = cache(data.images, data.splits, facts={"teacher_label_smoothing": 0.1})
    run(data, tmp_path, soft, num_replicates=1)
    assert "label smoothing" not in caplog.text
    run(data, tmp_path, soft, num_replicates=1, objective=Objective(1.0, temperature=4.0))
    assert "trained with label smoothing 0.1 and `temperature` is 4" in caplog.text


def test_an_arm_without_anything_to_learn_from_is_refused(
    images: ImageSet, examples: pd.DataFrame, splits: pd.DataFrame, tmp_path: Path
) -> None:
    nothing = splits.assign(use_label=splits["use_label"] & ~splits["for_student"])
    with pytest.raises(DataError, match="no example is left to learn from"):
        run(TrainingData(images, examples, nothing), tmp_path)


def test_a_soft_weight_without_a_teacher_is_refused(data: TrainingData, tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="`soft_weight` must be 0 for an arm without"):
        run(data, tmp_path, objective=Objective(soft_weight=0.5))


def test_a_student_knows_how_its_teachers_members_were_mixed(
    data: TrainingData, tmp_path: Path, cache: Cache
) -> None:
    rng = np.random.default_rng(0)
    count = len(ids_with_role(data.splits, "transfer"))
    logits = rng.normal(size=(2, 1, count, 3)).astype(np.float32)
    two = cache(data.images, data.splits, logits=logits, teacher_fingerprints=("t", "u"))
    mixing = Mixing("arithmetic", (3.0, 1.0))
    soft = Objective(soft_weight=1.0)
    teacher = CachedTeacher(two, mixing)
    (mixed, *_), _ = run(data, tmp_path / "a", teacher=teacher, objective=soft)
    assert mixed.facts["teacher_mixing"] == {"kind": "arithmetic", "shares": [0.75, 0.25]}
    (alone, *_), _ = run(data, tmp_path / "b", cache(data.images, data.splits))
    assert alone.facts["teacher_mixing"] is None  # One member is not mixed.
