"""Models in MLflow load without this project, and logging them leaves no trace in torch."""

import os
import subprocess
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kd_pipeline.models.architectures import build_network
from kd_pipeline.models.checkpoint import ModelCheckpoint, build_classifier
from kd_pipeline.models.preprocessing import Preprocessing
from kd_pipeline.tracking.operations import Operation, Point
from kd_pipeline.tracking.runs import RunBook
from kd_pipeline.tracking.sender import Sender
from kd_pipeline.tracking.store import Store
from kd_pipeline.tracking.unsent import Unsent, send_unsent

FetchRuns = Callable[[], dict[str, Any]]

LOAD = """
import sys, mlflow, numpy as np
sys.modules["kd_pipeline"] = None  # an import of it now fails
mlflow.set_tracking_uri(sys.argv[1])
pixels = np.load(sys.argv[3])
model = mlflow.pyfunc.load_model(sys.argv[2])
assert str(model.metadata.signature.inputs.inputs[0].type) == "uint8"
np.save(sys.argv[4], model.predict(pixels))
mlflow.pytorch.load_model(sys.argv[2])
"""


@pytest.fixture(scope="module")
def checkpoint() -> ModelCheckpoint:
    arguments = {"hidden": [8]}
    preprocessing = Preprocessing((1, 8, 8), (0.5,), (0.25,))
    network = build_network("mlp", shape=(1, 8, 8), num_classes=3, arguments=arguments)
    names = ("cat", "dog", "fox")
    return ModelCheckpoint("mlp", arguments, names, preprocessing, network.state_dict())


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, 1, 8, 8), dtype=np.uint8)


def log(checkpoint: ModelCheckpoint, sender: Sender, fetch_runs: FetchRuns) -> str:
    sender.open_run("student_kd-0", tags={"kd.group": "g"}, time_ms=1000)
    sender.log_model("student_kd-0", content=checkpoint)
    (output,) = fetch_runs()["student_kd-0"].outputs.model_outputs
    return f"models:/{output.model_id}"


def logits_of(checkpoint: ModelCheckpoint, pixels: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return build_classifier(checkpoint)(torch.from_numpy(pixels)).numpy()


def test_a_logged_model_is_the_checkpoint(
    checkpoint: ModelCheckpoint,
    sender: Sender,
    store: Store,
    tracked_project: Path,
    fetch_runs: FetchRuns,
    pixels: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import mlflow

    monkeypatch.setenv("MY_TOKEN", "canary")
    uri = log(checkpoint, sender, fetch_runs)
    assert "MLFLOW_TRACKING_URI" not in os.environ
    files = [path for path in tracked_project.rglob("*") if path.is_file()]
    assert len(files) > 5
    assert not [path for path in files if b"canary" in path.read_bytes()]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.uri)  # For the fluent functions.
    model = mlflow.pyfunc.load_model(uri)
    assert str(model.metadata.signature.inputs.inputs[0].type) == "uint8"
    expected = logits_of(checkpoint, pixels)
    np.testing.assert_allclose(model.predict(pixels), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.long
def test_a_logged_model_predicts_in_a_process_without_this_project(
    checkpoint: ModelCheckpoint,
    sender: Sender,
    store: Store,
    tmp_path: Path,
    fetch_runs: FetchRuns,
    pixels: np.ndarray,
) -> None:
    np.save(tmp_path / "pixels.npy", pixels)
    uri = log(checkpoint, sender, fetch_runs)
    command = [sys.executable, "-c", LOAD, store.uri, uri, "pixels.npy", "logits.npy"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    got, expected = np.load(tmp_path / "logits.npy"), logits_of(checkpoint, pixels)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_a_model_is_logged_once_and_holds_its_test_metrics(
    checkpoint: ModelCheckpoint,
    begin_book: Callable[..., RunBook],
    store: Store,
    fetch_runs: FetchRuns,
) -> None:
    """A later Kedro run that only evaluates finds run and model, and adds neither."""
    import mlflow

    identity = {"role": "student_kd", "replicate": 0, "checkpoint": checkpoint.fingerprint}
    first = begin_book("monday")
    for _ in range(2):
        first.log_models("student_kd", [checkpoint])
    first.log_test_metrics([{**identity, "test/nll": 0.5, "model/macs": 7}], [])
    first.end("FINISHED")
    later = begin_book("tuesday")
    later.log_models("student_kd", [checkpoint])
    later.log_test_metrics([{**identity, "test/accuracy": 0.75}], [])
    later.end("FINISHED")
    (run,) = fetch_runs().values()
    (output,) = run.outputs.model_outputs
    model = mlflow.MlflowClient(store.uri).get_logged_model(output.model_id)
    assert {(m.key, m.value) for m in model.metrics} == {("test/nll", 0.5), ("test/accuracy", 0.75)}


def test_a_model_that_could_not_be_sent_is_kept_beside(
    checkpoint: ModelCheckpoint,
    store: Store,
    tracked_project: Path,
    tmp_path: Path,
    fetch_runs: FetchRuns,
) -> None:
    unsent = Unsent(tmp_path / "unsent-group.jsonl", store)
    for kind, values in (
        ("open_run", {"tags": {"kd.group": "g"}, "time_ms": 1000}),
        ("log_model", {"content": checkpoint}),
        ("log_metrics", {"points": [Point("test/accuracy", 0.5, 0, 1)]}),
    ):
        unsent.keep(Operation(kind, "student_kd-0", values), {})
    assert send_unsent(unsent.file, tracked_project) == (3, None)
    assert len(fetch_runs()["student_kd-0"].outputs.model_outputs) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_model_whose_upload_was_killed_at_any_call_is_whole_after_the_next(
    checkpoint: ModelCheckpoint,
    store: Store,
    tracked_project: Path,
    tmp_path: Path,
    fetch_runs: FetchRuns,
    dies_after: Callable[[int], type[BaseException]],
) -> None:
    import mlflow

    client = mlflow.MlflowClient(store.uri)
    once = Point("model/macs", 7.0, 0, 5)
    for num_calls in count(5):  # Those before are not of the upload.
        run = f"run-{num_calls}"
        unsent = Unsent(tmp_path / f"unsent-{num_calls}.jsonl", store)
        for kind, values in (
            ("open_run", {"tags": {"kd.group": "g"}, "time_ms": 1000}),
            ("log_metrics", {"points": [once]}),
            ("log_model", {"content": checkpoint}),
        ):
            unsent.keep(Operation(kind, run, values), {})
        killed = dies_after(num_calls)
        was_killed = False
        try:
            send_unsent(unsent.file, tracked_project)
        except killed:
            was_killed = True
            dies_after(0)
            assert send_unsent(unsent.file, tracked_project)[1] is None
        held = fetch_runs()[run]
        (model,) = client.search_logged_models(
            [held.info.experiment_id], f"source_run_id = '{held.info.run_id}'"
        )
        assert [output.model_id for output in held.outputs.model_outputs] == [model.model_id]
        assert model.status == "READY"
        assert [(metric.key, metric.value) for metric in model.metrics] == [("model/macs", 7.0)]
        if not was_killed:
            break
    assert len(fetch_runs()) == num_calls - 4 > 5
