"""The registry: the first student is the champion, later ones must beat it, and it is said why."""

import functools
import json
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from kd_pipeline.evaluation.paired import paired_difference
from kd_pipeline.evaluation.settings import EvaluationParams
from kd_pipeline.tracking import registry, student_model
from kd_pipeline.tracking.registry import (
    Registration,
    find_champion,
    read_predictions,
    register_student,
)
from kd_pipeline.tracking.store import Store, open_client

NUM_EXAMPLES = 200


def interval(arm: np.ndarray, baseline: np.ndarray) -> list[float]:
    params = EvaluationParams(num_bootstrap_samples=200)
    return paired_difference(arm, baseline, params)["ci95"]


def predictions(num_right: int) -> pd.DataFrame:
    """Right on the first `num_right` examples; ids count down, so that rows are not sorted."""
    ids = np.arange(NUM_EXAMPLES)[::-1]
    return pd.DataFrame(
        {"example_id": ids, "label": ids % 3, "predicted": (ids >= num_right) + ids % 3}
    )


@pytest.fixture
def register(
    store: Store, onnx_student: Path, student_card: dict[str, Any], request: pytest.FixtureRequest
) -> "functools.partial[Registration]":
    """Registers a student under the test's name."""
    return functools.partial(
        register_student,
        store,
        onnx_file=onnx_student,
        card=student_card,
        paired_interval=interval,
        name=request.node.name,
    )


def test_the_first_student_is_the_champion_with_its_facts_and_files(
    register: "functools.partial[Registration]", store: Store, student_card: dict[str, Any]
) -> None:
    import mlflow

    from kd_pipeline.tracking.fluent import fluent_uri

    registration = register(predictions=predictions(150))
    assert registration == Registration("1", True, "champion: the first of this name")
    name = register.keywords["name"]
    champion = find_champion(store, name)
    assert champion is not None
    assert champion.tags == {
        "kd.role": "student_kd",
        "kd.checkpoint": "abc",
        "kd.group": "monday",
        "kd.test_fingerprint": "t1",
        "kd.accuracy": "0.750000",
        "kd.champion": registration.reason,
    }
    stored = read_predictions(store, name, "1")
    pd.testing.assert_frame_equal(stored, predictions(150)[::-1].reset_index(drop=True))
    with fluent_uri(store.uri):
        folder = Path(mlflow.artifacts.download_artifacts(f"models:/{name}@champion"))
    assert json.loads((folder / "artifacts/card.json").read_text()) == student_card
    onnx_file = register.keywords["onnx_file"]
    assert (folder / "artifacts" / onnx_file.name).read_bytes() == onnx_file.read_bytes()
    packages = (folder / "requirements.txt").read_text().split()
    assert [line.split("==")[0] for line in packages] == list(student_model._PACKAGES)


@pytest.mark.parametrize(
    ("num_right", "wins"), [(100, False), (150, False), (152, False), (180, True)]
)
def test_a_later_one_must_beat_the_champion_beyond_chance(
    register: "functools.partial[Registration]", store: Store, num_right: int, wins: bool
) -> None:
    register(predictions=predictions(150))
    later = register(predictions=predictions(num_right))
    assert (later.version, later.is_champion) == ("2", wins)
    facts = f"accuracy {num_right / NUM_EXAMPLES:.4f} against 0.7500 of version 1, paired interval"
    assert later.reason.startswith("champion: " if wins else "not the champion, because the inter")
    assert facts in later.reason
    name = register.keywords["name"]
    champion = find_champion(store, name)
    assert champion is not None
    assert str(champion.version) == ("2" if wins else "1")
    version = open_client(store).get_model_version(name, "2")
    assert version.tags["kd.champion"] == later.reason


def test_both_are_compared_on_the_same_examples_and_an_interval_from_zero_is_not_enough(
    register: "functools.partial[Registration]",
) -> None:
    seen = []

    def from_zero(arm: np.ndarray, baseline: np.ndarray) -> Sequence[float]:
        seen.extend([arm, baseline])
        return 0.0, 0.1

    register(predictions=predictions(150))
    shuffled = predictions(180).sample(frac=1, random_state=0)
    later = register(predictions=shuffled, paired_interval=from_zero)
    assert not later.is_champion
    assert "[+0.0000, +0.1000]" in later.reason
    ids = np.arange(NUM_EXAMPLES)
    np.testing.assert_array_equal(seen[0], (ids < 180)[None])
    np.testing.assert_array_equal(seen[1], (ids < 150)[None])


def test_nothing_is_compared_across_test_sets(
    register: "functools.partial[Registration]", store: Store, student_card: dict[str, Any]
) -> None:
    register(predictions=predictions(100))
    other = register(predictions=predictions(200), card={**student_card, "test_fingerprint": "t2"})
    assert not other.is_champion
    assert "version 1, was measured on test set t1, this one on t2" in other.reason
    fewer = register(predictions=predictions(200)[1:])
    assert not fewer.is_champion
    assert "other test examples or labels" in fewer.reason
    champion = find_champion(store, register.keywords["name"])
    assert champion is not None
    assert str(champion.version) == "1"


def test_a_store_that_is_away_is_said_and_not_raised(
    register: "functools.partial[Registration]",
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    away = Store("http://user:secret@127.0.0.1:9", "e", None)
    registration = register_student(away, **register.keywords, predictions=predictions(150))
    assert (registration.version, registration.is_champion) == (None, False)
    assert "MLflow at http://127.0.0.1:9 did not register it: " in registration.reason
    assert f"The run goes on, but {registration.reason}" in caplog.text


def test_a_store_that_answers_slowly_is_not_waited_for(
    register: "functools.partial[Registration]", slow_store: Store
) -> None:
    registration = register_student(slow_store, **register.keywords, predictions=predictions(150))
    rule = "it has taken more than 0.05 s, as long as `mlflow.max_wait_seconds` allows"
    reason = f"MLflow at {slow_store.uri} did not register it: {rule}"
    assert registration == Registration(None, False, reason)


def test_what_was_reported_as_not_registered_is_not_registered_later(
    register: "functools.partial[Registration]", store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    monkeypatch.setattr(registry, "log_student", lambda *_, **__: time.sleep(0.2))
    monkeypatch.setattr(registry, "_compare", lambda *_: (True, "champion"))
    monkeypatch.setattr(registry, "_create_version", lambda *_, **__: made.append("a version"))
    hasty = replace(store, max_wait_seconds=0.05)
    registration = register_student(hasty, **register.keywords, predictions=predictions(150))
    assert "did not register it" in registration.reason
    for thread in threading.enumerate():
        if thread.name == "mlflow-within":
            thread.join()
    assert made == []
