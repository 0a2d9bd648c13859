"""What was kept on disk is what is sent later, in order and only once."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kd_pipeline.tracking.__main__ import main
from kd_pipeline.tracking.operations import DatasetFacts, Operation, Point
from kd_pipeline.tracking.sender import Sender
from kd_pipeline.tracking.store import Store
from kd_pipeline.tracking.unsent import Unsent, find_unsent, is_being_written, send_unsent

FetchRuns = Callable[[], dict[str, Any]]

FACTS = DatasetFacts("digits", "abc", "training", "images", {})
OPERATIONS = tuple(
    Operation(kind, "teacher-0", values)
    for kind, values in (
        ("OpenRun", {"tags": {"kd.role": "teacher"}, "time_ms": 1000}),
        ("LogParams", {"params": {"seed": "1"}}),
        ("LogMetrics", {"points": [Point("train/loss", 0.5, 1, 1500)]}),
        ("SetTags", {"tags": {"kd.checkpoint": "c0ffee"}}),
        ("LogInputs", {"datasets": [FACTS]}),
        ("LogArtifact", {"path": "figures/a.png", "content": b"\x00\xff"}),
        ("CloseRun", {"status": "FAILED", "time_ms": 2000}),
    )
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "data" / "09_tracking"


def keep(folder: Path, store: Store, operations: tuple[Operation, ...]) -> Path:
    unsent = Unsent(folder / "unsent-group.jsonl", store)
    for operation in operations:
        unsent.keep(operation, {})
    return unsent.file


def test_all_that_was_kept_arrives(
    folder: Path, store: Store, tracked_project: Path, fetch_runs: FetchRuns
) -> None:
    file = keep(folder, store, OPERATIONS)
    assert find_unsent(folder) == [file]
    assert send_unsent(file, tracked_project) == (len(OPERATIONS), None)
    assert list(folder.iterdir()) == []
    run = fetch_runs()["teacher-0"]
    assert run.data.params == {"seed": "1"}
    assert run.data.metrics == {"train/loss": 0.5}
    assert run.data.tags["kd.checkpoint"] == "c0ffee"
    assert (run.info.status, run.info.start_time, run.info.end_time) == ("FAILED", 1000, 2000)
    assert run.inputs.dataset_inputs[0].dataset.digest == "abc"
    figure = run.info.artifact_uri.removeprefix("file://") + "/figures/a.png"
    assert Path(figure).read_bytes() == b"\x00\xff"


def test_what_the_store_refuses_stays_and_the_rest_arrives(
    folder: Path, store: Store, tracked_project: Path, fetch_runs: FetchRuns
) -> None:
    unknown = Operation("SetTags", "student_kd-0", {"tags": {"a": "b"}})
    file = keep(folder, store, (*OPERATIONS[:2], unknown, *OPERATIONS[2:]))
    num_sent, error = send_unsent(file, tracked_project)
    assert num_sent == len(OPERATIONS)
    assert isinstance(error, KeyError)
    kinds = [json.loads(line)["kind"] for line in file.read_text().splitlines()]
    assert kinds == ["Store", "RunIds", "SetTags"]
    assert fetch_runs()["teacher-0"].info.status == "FAILED"


def test_a_run_that_the_server_had_is_continued(
    folder: Path, store: Store, tracked_project: Path, fetch_runs: FetchRuns
) -> None:
    sender = Sender(store)
    sender.send(OPERATIONS[0])
    unsent = Unsent(folder / "unsent-group.jsonl", store)
    for operation in OPERATIONS[1:]:
        unsent.keep(operation, sender.run_ids)
    assert send_unsent(unsent.file, tracked_project)[1] is None
    assert fetch_runs()["teacher-0"].info.status == "FAILED"


def test_nothing_is_lost_while_the_store_is_still_away(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    file = keep(folder, Store("http://127.0.0.1:9", "e", None), OPERATIONS)
    before = [json.loads(line) for line in file.read_text().splitlines()]
    num_sent, error = send_unsent(file, tmp_path)
    after = [json.loads(line) for line in file.read_text().splitlines()]
    assert num_sent == 0
    assert error is not None
    assert [line for line in after if line["kind"] != "RunIds"] == before
    assert (folder / "unsent-group" / "6").read_bytes() == b"\x00\xff"


def test_no_password_reaches_the_disk(folder: Path) -> None:
    file = keep(folder, Store("https://ada:secret@tracking:5000", "e", None), OPERATIONS)
    assert "secret" not in file.read_text()


def test_command_sends_what_ended_and_leaves_what_goes_on(
    folder: Path, store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = keep(folder, store, OPERATIONS)
    assert is_being_written(file)
    assert main(["--project", str(tmp_path)]) == 0
    assert "its run still goes on" in capsys.readouterr().out
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    file.write_text(file.read_text().replace(f'"pid": {os.getpid()}', f'"pid": {process.pid}'))
    assert main(["--project", str(tmp_path)]) == 0
    assert "7 operations sent" in capsys.readouterr().out
    assert main(["--project", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "Nothing waits to be sent.\n"
