"""What was kept on disk is what is sent later, in order and only once."""

import base64
import json
import os
import subprocess
import sys
import zlib
from collections.abc import Callable
from dataclasses import replace
from itertools import count
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
        ("open_run", {"tags": {"kd.role": "teacher", "kd.group": "g"}, "time_ms": 1000}),
        ("log_params", {"params": {"seed": "1"}}),
        ("log_metrics", {"points": [Point("train/loss", 0.5, 1, 1500)]}),
        ("set_tags", {"tags": {"kd.checkpoint": "c0ffee"}}),
        ("log_inputs", {"datasets": [FACTS]}),
        ("log_artifact", {"path": "figures/a.png", "content": b"\x00\xff"}),
        ("close_run", {"status": "FAILED", "time_ms": 2000}),
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


def test_a_file_that_another_machine_has_sent_is_begun_anew(
    folder: Path, store: Store, tracked_project: Path, fetch_runs: FetchRuns
) -> None:
    sender = Sender(store)
    sender.send(OPERATIONS[0])
    unsent = Unsent(folder / "unsent-group.jsonl", store)
    for operation in OPERATIONS[1:]:
        unsent.keep(operation, sender.run_ids)
        assert send_unsent(unsent.file, tracked_project) == (1, None)
        assert not unsent.file.exists()
    assert fetch_runs()["teacher-0"].info.status == "FAILED"


def test_what_the_store_refuses_stays_and_the_rest_arrives(
    folder: Path, store: Store, tracked_project: Path, fetch_runs: FetchRuns
) -> None:
    unknown = Operation("set_tags", "student_kd-0", {"tags": {"a": "b"}})
    file = keep(folder, store, (*OPERATIONS[:2], unknown, *OPERATIONS[2:]))
    num_sent, error = send_unsent(file, tracked_project)
    assert num_sent == len(OPERATIONS)
    assert isinstance(error, KeyError)
    assert send_unsent(file, tracked_project)[0] == 0  # What was sent is not sent again.
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


CHECKPOINT_TAGS = {"kd.role": "student_kd", "kd.replicate": "0", "kd.checkpoint": "c0ffee"}


def operations_of(group: str) -> tuple[Operation, ...]:
    """Of two runs: one of a training, with points of several epochs, and one of a given model."""
    given = {"tags": {**CHECKPOINT_TAGS, "kd.group": group}, "time_ms": 1000, "find": True}
    opened = {"tags": {"kd.role": "teacher", "kd.group": group}, "time_ms": 1000}
    view = {"key": group, "models": ["teacher-0"], "group": group}
    points = [Point("train/loss", 1 / step, step, 1000 * step) for step in (1, 2, 3)]
    return (
        Operation("open_run", "teacher-0", opened),
        *OPERATIONS[1:2],
        *(Operation("log_metrics", "teacher-0", {"points": [point]}) for point in points),
        *OPERATIONS[3:],
        Operation("open_run", "student_kd-0", given),
        Operation("log_metrics", "student_kd-0", {"points": [Point("test/nll", 0.5, 0, 9)]}),
        Operation("save_view", "comparison", view),
    )


def contents(store: Store) -> list[Any]:
    """All that an experiment holds, without the ids that MLflow draws and the times of writing."""
    import mlflow

    client = mlflow.MlflowClient(store.uri)
    experiment = client.get_experiment_by_name(store.experiment)
    found = []
    for run in client.search_runs([experiment.experiment_id]):
        info, run_id = run.info, run.info.run_id
        points = [
            (point.key, point.value, point.step, point.timestamp)
            for name in run.data.metrics
            for point in client.get_metric_history(run_id, name)
        ]
        used = [(item.dataset.name, item.dataset.digest) for item in run.inputs.dataset_inputs]
        folder = Path(info.artifact_uri.removeprefix("file://"))
        files = {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        tags = {name: value for name, value in run.data.tags.items() if name != "kd.group"}
        times = (info.status, info.start_time, info.end_time)
        found.append((info.run_name, times, run.data.params, tags, points, used, files))
    (view,) = [tag for name, tag in experiment.tags.items() if "sharedViewState" in name]
    state = zlib.decompress(base64.b64decode(json.loads(view)["state"].removeprefix("deflate;")))
    by_group = "tags.kd.group =" in json.loads(state)["searchFilter"]
    return [*sorted(found, key=lambda run: str(run[0])), by_group]


def test_a_sender_killed_at_any_call_and_run_again_leaves_the_same_store(
    folder: Path,
    tracked_project: Path,
    store: Store,
    dies_after: Callable[[int], type[BaseException]],
) -> None:
    for num_calls in count():  # The first one is never killed.
        to = replace(store, experiment=f"{store.experiment} {num_calls}")
        file = keep(folder, to, operations_of(f"group-{num_calls}"))
        killed = dies_after(num_calls)
        was_killed = False
        try:
            send_unsent(file, tracked_project)
        except killed:
            was_killed = True
            dies_after(0)
            assert send_unsent(file, tracked_project)[1] is None
        assert list(folder.iterdir()) == []
        if num_calls == 0:
            expected = contents(to)
            assert [run[0] for run in expected[:-1]] == ["student_kd-0", "teacher-0"]
        assert contents(to) == expected, f"killed at call {num_calls}"
        if num_calls and not was_killed:
            break
    assert num_calls > 15


def test_damaged_lines_are_set_aside_and_stop_nothing(
    folder: Path,
    store: Store,
    tracked_project: Path,
    fetch_runs: FetchRuns,
    caplog: pytest.LogCaptureFixture,
) -> None:
    file = keep(folder, store, OPERATIONS)
    lines = file.read_text().split("\n")
    lines[3:3] = ["", lines[3][:20], "12", '{"run": "teacher-0"}']
    file.write_text("\n".join(lines))
    assert send_unsent(file, tracked_project) == (len(OPERATIONS), None)
    assert fetch_runs()["teacher-0"].info.status == "FAILED"
    assert [record.args[1] for record in caplog.records] == [5, 6, 7]
    assert f"{file}, line 5 is damaged: set aside in" in caplog.text
    (aside,) = folder.iterdir()
    assert aside.read_text() == f"line 5: {lines[4]}\nline 6: 12\nline 7: {lines[6]}\n"


def test_a_half_written_line_costs_no_other_one(folder: Path, store: Store) -> None:
    unsent = Unsent(folder / "unsent-group.jsonl", store)
    unsent.keep(OPERATIONS[0], {})
    whole = unsent.file.read_bytes()
    unsent.keep(OPERATIONS[1], {})
    unsent.file.write_bytes(whole + unsent.file.read_bytes()[len(whole) :][:9])  # A full disk.
    unsent.keep(OPERATIONS[2], {})
    *_, half, last = unsent.file.read_text().split("\n")
    assert len(half) == 8
    assert json.loads(last)["kind"] == "log_metrics"


def test_a_file_that_names_no_store_does_not_stop_the_others(
    folder: Path, store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "unsent-early.jsonl").parent.mkdir(parents=True)
    (folder / "unsent-early.jsonl").write_text('{"kind": "Sto')
    file = keep(folder, store, OPERATIONS)
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    file.write_text(file.read_text().replace(f'"pid": {os.getpid()}', f'"pid": {process.pid}'))
    assert main(["--project", str(tmp_path)]) == 1
    said = capsys.readouterr()
    assert "7 operations sent" in said.out
    assert "unsent-early.jsonl must begin with the name of a store" in said.err


def test_no_password_reaches_the_disk(folder: Path) -> None:
    file = keep(
        folder, Store("https://ada:secret@tracking:5000", "e", None, ("ada", "secret")), OPERATIONS
    )
    assert "secret" not in file.read_text()


def test_command_says_that_a_database_is_damaged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"no database" * 100)
    (tmp_path / "mlartifacts").mkdir()
    assert main(["--project", str(tmp_path)]) == 1
    assert "file is not a database" in capsys.readouterr().err


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
