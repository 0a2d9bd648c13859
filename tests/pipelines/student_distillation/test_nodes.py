"""The students' nodes: what each hands on, and that only the right soft targets are taken."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from kd_pipeline.data.images import ImageSet
from kd_pipeline.data.splits import ids_with_role, split_fingerprint
from kd_pipeline.data.views import ViewPolicy
from kd_pipeline.errors import DataError, ParameterError, StaleArtefactError
from kd_pipeline.events import Event, TrainingStarted, listening
from kd_pipeline.models.checkpoint import ModelCheckpoint
from kd_pipeline.models.state_folder import StateFolder
from kd_pipeline.parameters import ArmParams, StudentParams, ViewsParams
from kd_pipeline.pipelines.student_distillation.nodes import train_on_labels, train_on_soft_targets
from kd_pipeline.soft_targets.manifest import Provenance
from kd_pipeline.soft_targets.store import SoftTargets, make_soft_targets

STUDENT: dict[str, Any] = {
    "num_replicates": 2,
    "model": {"name": "mlp", "arguments": {"hidden": [8]}},
    "training": {"num_epochs": 2, "batch_size": 16, "device": "cpu", "checkpoint_every": 1},
}
CARD = {"fingerprints": ["t"], "architectures": ["small_cnn"], "class_names": []}


def cache(images: ImageSet, splits: pd.DataFrame, **changes: Any) -> SoftTargets:
    ids = ids_with_role(splits, "transfer")
    right = np.eye(3, dtype=np.float32)[images.positions(ids) % 3] * 6
    provenance = {
        "class_names": images.class_names,
        "teacher_fingerprints": ("t",),
        "images_fingerprint": images.fingerprint,
        "splits_fingerprint": split_fingerprint(splits),
        "view_policy": ViewPolicy().description,
        "num_views": 1,
    }
    return make_soft_targets([[right]], ids, provenance=Provenance(**(provenance | changes)))


@pytest.fixture
def given(
    images: ImageSet, examples: pd.DataFrame, splits: pd.DataFrame, tmp_path: Path
) -> dict[str, Any]:
    """What every arm takes."""
    return {
        "images": images,
        "examples": examples,
        "splits": splits,
        "training_states": StateFolder(tmp_path / "states"),
        "student": StudentParams.model_validate(STUDENT),
        "views": ViewsParams(),
    }


def on_labels(given: dict[str, Any], **arm: Any) -> tuple[list[ModelCheckpoint], pd.DataFrame]:
    return train_on_labels(**given, arm=ArmParams.model_validate(arm))


def distil(
    given: dict[str, Any], soft_targets: SoftTargets | None = None, **arm: Any
) -> tuple[list[ModelCheckpoint], pd.DataFrame]:
    cached = soft_targets or cache(given["images"], given["splits"])
    arm = {"soft_weight": 1.0} | arm
    return train_on_soft_targets(
        **given, soft_targets=cached, teacher_card=CARD, arm=ArmParams.model_validate(arm)
    )


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


def test_an_arm_without_any_label_is_refused(given: dict[str, Any]) -> None:
    nothing = given["splits"].assign(use_label=False)
    with pytest.raises(DataError, match="no example is left to learn from"):
        on_labels(given | {"splits": nothing})
    checkpoints, _ = distil(given | {"splits": nothing})
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
    given: dict[str, Any], changes: dict[str, Any], what: str
) -> None:
    heard: list[Event] = []
    stale = cache(given["images"], given["splits"])
    stale = SoftTargets(
        **vars(stale)
        | {
            "manifest": type(stale.manifest)(
                type(stale.manifest.provenance)(**vars(stale.manifest.provenance) | changes),
                stale.manifest.num_rows,
            )
        }
    )
    with pytest.raises(StaleArtefactError, match=f"this run's {what}"), listening(heard.append):
        distil(given, stale)
    assert heard == []


def test_the_same_again_gives_the_same(given: dict[str, Any]) -> None:
    first, second = (distil(given) for _ in range(2))
    assert [c.fingerprint for c in first[0]] == [c.fingerprint for c in second[0]]
