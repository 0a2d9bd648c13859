"""The process that sends: as good as a sender here, and gone when it is not needed."""

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kd_pipeline.atomic import is_alive
from kd_pipeline.errors import TrackingStoreError
from kd_pipeline.models.architectures import build_network
from kd_pipeline.models.checkpoint import ModelCheckpoint
from kd_pipeline.models.classifier import Preprocessing
from kd_pipeline.tracking.journal import Journal
from kd_pipeline.tracking.operations import Operation, Point
from kd_pipeline.tracking.sender import Sender
from kd_pipeline.tracking.sending_process import SendingError, SendingProcess
from kd_pipeline.tracking.store import Store
from kd_pipeline.tracking.unsent import Unsent

FetchRuns = Callable[[], dict[str, Any]]
OPEN = Operation("open_run", "a", {"tags": {"kd.group": "g"}, "time_ms": 1000})
LOG = Operation("log_metrics", "a", {"points": (Point("train/loss", 0.5, 1, 2000),)})
CLOSE = Operation("close_run", "a", {"status": "FINISHED", "time_ms": 3000})


@pytest.fixture
def process(store: Store) -> Iterator[SendingProcess]:
    process = SendingProcess(store)
    yield process
    process.close()


def pid_of(process: SendingProcess) -> int:
    assert process._process is not None
    return process._process.popen.pid


def has_ended(pid: int) -> bool:
    deadline = time.monotonic() + 30
    while is_alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not is_alive(pid)


def test_what_is_sent_arrives_and_ids_and_logs_come_back(
    process: SendingProcess, fetch_runs: FetchRuns, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    network = build_network("mlp", shape=(1, 4, 4), num_classes=2, arguments={"hidden": [3]})
    preprocessing = Preprocessing((1, 4, 4), (0.5,), (0.25,))
    state, names = network.state_dict(), ("cat", "dog")
    model = ModelCheckpoint("mlp", {"hidden": [3]}, names, preprocessing, state)
    graph = ModelCheckpoint("onnx", {}, names, preprocessing, state)
    for operation in (
        OPEN,
        LOG,
        Operation("log_model", "a", {"content": graph}),
        Operation("log_model", "a", {"content": model}),
        CLOSE,
    ):
        process.send(operation)
    run = fetch_runs()["a"]
    assert process.run_ids == {"a": run.info.run_id}
    assert process.experiment_id == run.info.experiment_id
    assert run.data.metrics["train/loss"] == 0.5
    assert len(run.outputs.model_outputs) == 1
    assert process.export_seconds > 0
    assert "onnx is not logged as an MLflow model" in caplog.text
    assert {record.process for record in caplog.records} == {pid_of(process)}
    caplog.clear()
    caplog.set_level(logging.WARNING)
    process.send(Operation("open_run", "b", OPEN.values))
    process.send(Operation("log_model", "b", {"content": graph}))
    assert not caplog.records


def test_neither_mlflow_nor_torch_is_imported_here() -> None:
    script = """
import sys
from kd_pipeline.tracking.sending_process import SendingProcess
from kd_pipeline.tracking.store import Store
process = SendingProcess(Store("http://127.0.0.1:9", "e", None))
process.run_ids["a"] = "1"
print(process._call("__getattribute__", "run_ids"), *({"mlflow", "torch"} & set(sys.modules)))
process.close()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert done.stdout == b"{'a': '1'}\n"


def test_errors_come_back_as_text(process: SendingProcess) -> None:
    process.send(OPEN)
    process.send(Operation("log_params", "a", {"params": {"lr": "1"}}))
    with pytest.raises(SendingError, match="lr") as refused:
        process.send(Operation("log_params", "a", {"params": {"lr": "2"}}))
    assert "\n" not in str(refused.value)
    assert process.is_reachable()


def test_after_a_kill_the_next_call_starts_another_that_knows_the_runs(
    process: SendingProcess,
) -> None:
    process.run_ids["a"] = "1"
    assert process._call("__getattribute__", "run_ids") == {"a": "1"}
    os.kill(killed := pid_of(process), signal.SIGKILL)
    with pytest.raises(TrackingStoreError, match="no answer from the process"):
        process._call("__getattribute__", "run_ids")
    assert process._call("__getattribute__", "run_ids") == {"a": "1"}
    assert pid_of(process) != killed


def test_without_a_process_the_store_is_not_reachable(
    process: SendingProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/no/python")
    assert not process.is_reachable()
    with pytest.raises(TrackingStoreError, match="no/python"):
        process.send(OPEN)


ENDLESS = """
import os, signal, sys
from kd_pipeline.tracking.sending_process import SendingProcess
from kd_pipeline.tracking.store import Store
process = SendingProcess(Store("http://127.0.0.1:9", "e", None))
process._call("__getattribute__", "run_ids")
print(process._process.popen.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_modules_in_the_working_directory_shadow_none(
    process: SendingProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "queue.py").write_text("raise RuntimeError('shadowed')")
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text("print('hello', flush=True)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, tmp_path])  # Python ignores a Path there.
    assert process._call("__getattribute__", "run_ids") == {}


def test_what_cannot_be_sent_to_it_is_an_error_like_others(process: SendingProcess) -> None:
    with pytest.raises(TrackingStoreError, match="no answer from the process"):
        process.send(Operation("set_tags", "a", {"tags": {"of": lambda: None}}))
    assert process._call("__getattribute__", "run_ids") == {}


def test_it_ends_with_the_process_that_it_sends_for() -> None:
    """However that ended."""
    done = subprocess.run([sys.executable, "-c", ENDLESS], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL
    assert has_ended(int(done.stdout))


def test_a_journal_that_has_given_up_does_not_wait_for_its_last_call(
    server: Any, tmp_path: Path
) -> None:
    server.delay = 60
    store = Store(server.uri, "e", None)
    process, unsent = SendingProcess(store), Unsent(tmp_path / "unsent-g.jsonl", store)
    journal = Journal(process, unsent, max_wait_seconds=0.1)
    journal.put(Sender.open_run, "a", **OPEN.values)
    journal.start()
    deadline = time.monotonic() + 60
    while process._process is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    pid, begun = pid_of(process), time.monotonic()
    journal.close()
    assert time.monotonic() - begun < 30
    assert not is_alive(pid)
    assert "open_run" in unsent.file.read_text()
