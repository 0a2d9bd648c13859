"""The students' nodes: what each hands on, and that only the right soft targets are taken."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from kd_pipeline.data.images import ImageSet
from kd_pipeline.data.splits import ids_with_role, split_fingerprint
from kd_pipeline.errors import (
    DataError,
    ParameterError,
    StaleArtefactError,
    TeacherTooWeakError,
)
from kd_pipeline.events import Event, TrainingStarted, listening
from kd_pipeline.labelling.settings import SoftTargetCachingParams
from kd_pipeline.labelling.soft_targets import label_transfer_set
from kd_pipeline.models.checkpoint import ModelCheckpoint, build_untrained, snapshot
from kd_pipeline.models.preprocessing import Preprocessing
from kd_pipeline.models.state_folder import StateFolder
from kd_pipeline.pipelines.student_distillation.nodes import (
    train_on_labels,
    train_on_live_teacher,
    train_on_soft_targets,
)
from kd_pipeline.soft_targets.parts_folder import PartsFolder
from kd_pipeline.soft_targets.settings import SoftTargetsParams
from kd_pipeline.soft_targets.store import SoftTargets
from kd_pipeline.training.block_settings import ArmParams, StudentParams
from kd_pipeline.views import ViewPolicy
from kd_pipeline.views.settings import ViewsParams

STUDENT: dict[str, Any] = {
    "num_replicates": 2,
    "model": {"name": "mlp", "arguments": {"hidden": [8]}},
    "training": {"num_epochs": 2, "batch_size": 16, "device": "cpu", "checkpoint_every": 1},
}
CARD = {"fingerprints": ["t"], "architectures": ["small_cnn"], "class_names": []}


@pytest.fixture
def given(
    images: ImageSet,
    examples: pd.DataFrame,
    splits: pd.DataFrame,
    make_cache: Callable[..., SoftTargets],
    tmp_path: Path,
) -> dict[str, Any]:
    """What every arm takes, and a cache for those that learn from one."""
    return {
        "soft_targets": make_cache(tmp_path / "cache", images, splits),
        "reading": SoftTargetsParams(),
        "images": images,
        "examples": examples,
        "splits": splits,
        "training_states": StateFolder(tmp_path / "states"),
        "student": StudentParams.model_validate(STUDENT),
        "views": ViewsParams(),
    }


def on_labels(given: dict[str, Any], **arm: Any) -> tuple[list[ModelCheckpoint], pd.DataFrame]:
    shared = {name: value for name, value in given.items() if name != "soft_targets"}
    return train_on_labels(**shared, arm=ArmParams.model_validate(arm))


def distil(given: dict[str, Any], **arm: Any) -> tuple[list[ModelCheckpoint], pd.DataFrame]:
    arm = {"soft_weight": 1.0} | arm
    return train_on_soft_targets(**given, teacher_card=CARD, arm=ArmParams.model_validate(arm))


def test_replicates_are_trained_and_their_states_outlive_the_node(
    given: dict[str, Any], tmp_path: Path
) -> None:
    checkpoints, history = distil(given)
    assert len({checkpoint.fingerprint for checkpoint in checkpoints}) == 2
    assert history[["replicate", "epoch"]].to_numpy().tolist() == [[0, 1], [0, 2], [1, 1], [1, 2]]
    # Until the checkpoints are on disk: tests/hooks/test_resume_hook.py.
    assert len(list((tmp_path / "states").iterdir())) == 2
    json.dumps(checkpoints[0].facts, allow_nan=False)


def test_arms_are_told_under_the_same_parameter_names(given: dict[str, Any]) -> None:
    heard: list[Event] = []
    with listening(heard.append):
        on_labels(given)
        distil(given, temperature=4.0)
    started = [event for event in heard if isinstance(event, TrainingStarted)]
    assert len(started) == 4
    assert len({tuple(sorted(event.parameters)) for event in started}) == 1
    assert len({event.steps_per_epoch for event in started}) == 1
    assert started[2].parameters["temperature"] == 4.0


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
def test_every_setting_of_an_arm_matters(given: dict[str, Any], arm: dict[str, Any]) -> None:
    first, _ = distil(given)
    other, _ = distil(given, **arm)
    assert first[0].fingerprint != other[0].fingerprint


def test_smoothing_matters_without_a_teacher_too(given: dict[str, Any]) -> None:
    first, _ = on_labels(given)
    other, _ = on_labels(given, label_smoothing=0.1)
    assert first[0].fingerprint != other[0].fingerprint


def test_a_soft_weight_without_a_teacher_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ParameterError, match="`soft_weight` must be 0"):
        on_labels(given, soft_weight=0.5)


def test_an_arm_without_any_label_is_refused(
    given: dict[str, Any], make_cache: Callable[..., SoftTargets], tmp_path: Path
) -> None:
    nothing = given["splits"].assign(use_label=False)
    with pytest.raises(DataError, match="no example is left to learn from"):
        on_labels(given | {"splits": nothing})
    cached = make_cache(tmp_path / "unlabelled", given["images"], nothing)
    checkpoints, _ = distil(given | {"splits": nothing, "soft_targets": cached})
    assert len(checkpoints) == 2  # Soft targets need no labels.


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
def test_a_cache_of_something_else_is_refused_saying_which(
    given: dict[str, Any],
    make_cache: Callable[..., SoftTargets],
    tmp_path: Path,
    changes: dict[str, Any],
    what: str,
) -> None:
    heard: list[Event] = []
    count = len(ids_with_role(given["splits"], "transfer"))
    if "num_views" in changes:
        changes = changes | {"logits": [[np.eye(3, dtype=np.float32)[np.zeros(count, int)]] * 2]}
    stale = make_cache(tmp_path / "stale", given["images"], given["splits"], **changes)
    with pytest.raises(StaleArtefactError, match=f"this run's {what}"), listening(heard.append):
        distil(given | {"soft_targets": stale})
    assert heard == []


def untrained_teacher(images: ImageSet) -> ModelCheckpoint:
    arguments = {"hidden": [16]}
    classifier = build_untrained(
        architecture="mlp",
        arguments=arguments,
        preprocessing=Preprocessing((1, 8, 8), (0.3,), (0.2,)),
        num_classes=3,
        seed=5,
    )
    return snapshot(
        classifier,
        architecture="mlp",
        arguments=arguments,
        class_names=images.class_names,
        facts={},
    )


def test_a_live_teacher_below_the_bar_teaches_nobody(given: dict[str, Any]) -> None:
    shared = {name: value for name, value in given.items() if name != "soft_targets"}
    shared |= {"checkpoints": [untrained_teacher(given["images"])]}
    shared |= {"arm": ArmParams.model_validate({"soft_weight": 1.0})}
    heard: list[Event] = []
    with (
        listening(heard.append),
        pytest.raises(TeacherTooWeakError, match=r"min_validation_accuracy` is 0\.99"),
    ):
        train_on_live_teacher(
            **shared, caching=SoftTargetCachingParams(min_validation_accuracy=0.99)
        )
    assert not [event for event in heard if isinstance(event, TrainingStarted)]
    trained, _ = train_on_live_teacher(
        **shared, caching=SoftTargetCachingParams(min_validation_accuracy=0.0)
    )
    assert len(trained) == 2


def test_a_live_teacher_teaches_what_its_cache_would(given: dict[str, Any], tmp_path: Path) -> None:
    """Through the nodes; tests/training/test_teacher_sources.py compares logit by logit."""
    images, splits = given["images"], given["splits"]
    teacher = untrained_teacher(images)
    shared = {name: value for name, value in given.items() if name != "soft_targets"}
    arm = ArmParams.model_validate({"soft_weight": 1.0})
    live, _ = train_on_live_teacher(
        **shared, checkpoints=[teacher], arm=arm, caching=SoftTargetCachingParams()
    )
    cached_logits = label_transfer_set(
        [teacher],
        images,
        ids_with_role(splits, "transfer"),
        parts=PartsFolder(tmp_path / "parts"),
        splits_fingerprint=split_fingerprint(splits),
        policy=ViewPolicy(),
        num_views=1,
        batch_size=64,
        device="cpu",
        precision="float32",
    )
    card = {"fingerprints": [teacher.fingerprint]}
    cached, _ = train_on_soft_targets(
        **shared, soft_targets=cached_logits, teacher_card=card, arm=arm
    )
    for ours, theirs in zip(live, cached, strict=True):
        for name, weights in ours.state.items():
            torch.testing.assert_close(weights, theirs.state[name], rtol=0.01, atol=0.01)


def test_the_same_again_gives_the_same(given: dict[str, Any]) -> None:
    first, second = (distil(given) for _ in range(2))
    assert [c.fingerprint for c in first[0]] == [c.fingerprint for c in second[0]]
