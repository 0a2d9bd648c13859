"""Operations carried out against a real store."""

import json
import os
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from kd_pipeline.tracking.operations import DatasetFacts, Operation, Point
from kd_pipeline.tracking.sender import Sender
from kd_pipeline.tracking.store import Store

FetchRuns = Callable[[], dict[str, Any]]


def checkpoint_tags(group: str, checkpoint: str = "c0ffee") -> dict[str, str]:
    return {
        "kd.group": group,
        "kd.role": "student_kd",
        "kd.replicate": "0",
        "kd.checkpoint": checkpoint,
    }


def test_a_run_holds_all_that_was_sent(sender: Sender, fetch_runs: FetchRuns) -> None:
    facts = DatasetFacts("digits", "0123456789abcdef" * 4, "training", "images", {"n": 9})
    many_params = {f"name{at}": "x" for at in range(150)}
    points = tuple(Point("train/loss", 1 / step, step, 1000 * step) for step in range(1, 1502))
    key = "student_kd-0"
    sender.open_run(key, tags={"kd.group": "monday"}, time_ms=5000)
    sender.log_params(key, params=many_params)
    sender.log_metrics(key, points=points)
    sender.set_tags(key, tags={"kd.checkpoint": "c0ffee"})
    sender.log_inputs(key, datasets=[facts])
    sender.log_artifact(key, path="figures/accuracy.png", content=b"png")
    sender.close_run(key, status="FINISHED", time_ms=9000)
    run = fetch_runs()["student_kd-0"]
    assert run.data.params == many_params
    assert run.data.metrics["train/loss"] == pytest.approx(1 / 1501)
    assert run.data.tags["kd.checkpoint"] == "c0ffee"
    assert (run.info.status, run.info.start_time, run.info.end_time) == ("FINISHED", 5000, 9000)
    (used,) = run.inputs.dataset_inputs
    assert used.dataset.name == "digits"
    assert facts.digest.startswith(used.dataset.digest)
    assert len(used.dataset.digest) == 36, "MLflow's limit"
    assert used.dataset.source_type == "code"
    assert json.loads(used.dataset.source) == {"tags": {"catalog_entry": "images"}}
    assert json.loads(used.dataset.profile) == {"n": 9}
    assert [(tag.key, tag.value) for tag in used.tags] == [("mlflow.data.context", "training")]
    path = run.info.artifact_uri.removeprefix("file://") + "/figures/accuracy.png"
    assert Path(path).read_bytes() == b"png"


def test_a_run_is_found_again_by_its_checkpoint(store: Store, fetch_runs: FetchRuns) -> None:
    first = Sender(store)
    first.open_run("student_kd-0", tags=checkpoint_tags("monday"), time_ms=1000)
    later = Sender(store)
    later.open_run("student_kd-0", tags=checkpoint_tags("tuesday"), time_ms=1000, find=True)
    assert later.run_ids == first.run_ids
    assert len(fetch_runs()) == 1


def test_metrics_are_sent_where_only_the_id_of_the_run_is_at_hand(
    store: Store, fetch_runs: FetchRuns
) -> None:
    """As by a later process, which has the ids in a file."""
    first, later = Sender(store), Sender(store)
    first.open_run("student_kd-0", tags=checkpoint_tags("monday"), time_ms=1000)
    later.run_ids.update(first.run_ids)
    later.log_metrics("student_kd-0", points=[Point("test/accuracy", 0.9, 0, 1000)])
    assert fetch_runs()["student_kd-0"].data.metrics == {"test/accuracy": 0.9}


@pytest.mark.parametrize(
    "other", [{"kd.role": "student_baseline"}, {"kd.replicate": "1"}, {"kd.checkpoint": "stale"}]
)
def test_role_replicate_and_checkpoint_each_tell_two_runs_apart(
    store: Store, other: dict[str, str]
) -> None:
    """A run of another model must not get this one's test metrics."""
    first, later = Sender(store), Sender(store)
    first.open_run("a run", tags={**checkpoint_tags("monday"), **other}, time_ms=1000)
    later.open_run("a run", tags=checkpoint_tags("tuesday"), time_ms=1000, find=True)
    assert later.run_ids != first.run_ids


def test_ten_thousand_runs_of_others_slow_nothing_down(
    sender: Sender, store: Store, tracked_project: Path
) -> None:
    """0.4 s on two busy cores, of which opening the store is the most."""
    sender.open_run("mine", tags=checkpoint_tags("monday"), time_ms=1000)
    columns = "(run_uuid, name, status, start_time, lifecycle_stage, experiment_id, artifact_uri)"
    runs = [f"{sender.experiment_id}-{at:028d}" for at in range(10_000)]
    tags = [
        (name, value, run)
        for at, run in enumerate(runs)
        for name, value in {
            **checkpoint_tags(f"group-{at // 10}", f"c{at}"),
            "mlflow.runName": "student_kd-0",
        }.items()
    ]
    with closing(sqlite3.connect(tracked_project / "mlflow.db")) as connection, connection:
        connection.executemany(
            f"INSERT INTO runs {columns} VALUES (?, ?, 'FINISHED', 1, 'active', ?, '')",
            [(run, "student_kd-0", sender.experiment_id) for run in runs],
        )
        connection.executemany("INSERT INTO tags (key, value, run_uuid) VALUES (?, ?, ?)", tags)
    later = Sender(store)
    begun = time.monotonic()
    later.close_dead_runs("", own_pid=0)
    later.open_run("new", tags=checkpoint_tags("tuesday"), time_ms=1000)
    later.open_run("found", tags=checkpoint_tags("tuesday"), time_ms=1000, find=True)
    seconds = time.monotonic() - begun
    assert later.run_ids["found"] in (later.run_ids["new"], sender.run_ids["mine"])
    assert seconds < 5


def test_the_own_group_goes_before_a_newer_one(store: Store) -> None:
    own, newer, later = Sender(store), Sender(store), Sender(store)
    own.open_run("student_kd-0", tags=checkpoint_tags("monday"), time_ms=1000)
    newer.open_run("student_kd-0", tags=checkpoint_tags("tuesday"), time_ms=2000)
    later.open_run("student_kd-0", tags=checkpoint_tags("monday"), time_ms=1000, find=True)
    assert later.run_ids == own.run_ids
    later.open_run("student_kd-0", tags=checkpoint_tags("friday"), time_ms=1000, find=True)
    assert later.run_ids == newer.run_ids


def test_a_model_from_elsewhere_gets_a_finished_run(sender: Sender, fetch_runs: FetchRuns) -> None:
    sender.open_run("student_kd-0", tags=checkpoint_tags("monday"), time_ms=1000, find=True)
    run = fetch_runs()["student_kd-0"]
    assert (run.info.status, run.info.end_time) == ("FINISHED", 1000)
    assert run.data.tags["kd.checkpoint"] == "c0ffee"
    assert run.data.tags["kd.group"] == "monday"


def test_runs_that_are_found_stay_as_they_are(store: Store, fetch_runs: FetchRuns) -> None:
    """Both those that have ended and, of other groups, those that still go on."""
    first = Sender(store)
    first.open_run("ended", tags=checkpoint_tags("monday", "c1"), time_ms=1000)
    first.open_run("goes on", tags=checkpoint_tags("monday", "c2"), time_ms=1000)
    first.close_run("ended", status="FAILED", time_ms=2000)
    later = Sender(store)
    for group, checkpoint in (("monday", "c1"), ("tuesday", "c1"), ("tuesday", "c2")):
        tags = checkpoint_tags(group, checkpoint)
        later.open_run(checkpoint, tags=tags, time_ms=3000, find=True)
    runs = fetch_runs()
    ends = {name: (run.info.status, run.info.end_time) for name, run in runs.items()}
    assert ends == {"ended": ("FAILED", 2000), "goes on": ("RUNNING", None)}


def test_runs_of_killed_processes_do_not_run_for_ever(
    sender: Sender, fetch_runs: FetchRuns
) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    here = socket.gethostname()
    owners = {
        "dead": (here, process.pid),
        "older": (here, os.getpid()),
        "alive": (here, os.getppid()),
        "unknown": (here, 0),
        "elsewhere": ("another machine", process.pid),
    }
    for name, (host, pid) in owners.items():
        tags = {"kd.group": "g", "kd.host": host, "kd.pid": str(pid)}
        sender.open_run(name, tags=tags, time_ms=1000)
    sender.open_run("without a pid", tags={"kd.group": "g", "kd.host": here}, time_ms=1000)
    sender.send(Operation("close_dead_runs", "", {"own_pid": os.getpid()}))
    runs = fetch_runs()
    for run in runs.values():
        error = "the process was killed" if run.info.status == "KILLED" else None
        assert run.data.tags.get("kd.error") == error
    statuses = {name: run.info.status for name, run in runs.items()}
    assert statuses == {
        "dead": "KILLED",
        "older": "KILLED",
        "alive": "RUNNING",
        "unknown": "KILLED",
        "without a pid": "KILLED",
        "elsewhere": "RUNNING",
    }


def test_what_is_sent_again_by_a_later_process_is_there_once(
    store: Store, fetch_runs: FetchRuns
) -> None:
    import mlflow

    given = {"tags": checkpoint_tags("monday"), "time_ms": 1000, "find": True}
    operations = [
        Operation("open_run", "teacher-0", {"tags": {"kd.group": "monday"}, "time_ms": 1000}),
        Operation("log_metrics", "teacher-0", {"points": [Point("train/loss", 0.5, 1, 1500)]}),
        Operation("close_run", "teacher-0", {"status": "FAILED", "time_ms": 2000}),
        Operation("open_run", "student_kd-0", given),
    ]
    senders = Sender(store), Sender(store)
    for sender in senders:
        for operation in operations:
            sender.send(operation)
    assert senders[0].run_ids == senders[1].run_ids
    runs = fetch_runs()
    assert set(runs) == {"teacher-0", "student_kd-0"}
    run = runs["teacher-0"].info
    assert (run.status, run.start_time, run.end_time) == ("FAILED", 1000, 2000)
    assert len(mlflow.MlflowClient(store.uri).get_metric_history(run.run_id, "train/loss")) == 1
    senders[1].open_run("teacher-0", tags={"kd.group": "tuesday"}, time_ms=1000)
    assert senders[1].run_ids["teacher-0"] != run.run_id


def test_a_broken_operation_raises_and_the_store_is_still_reachable(sender: Sender) -> None:
    with pytest.raises(KeyError):
        sender.close_run("never opened", status="FINISHED", time_ms=1000)
    assert sender.is_reachable()


def test_a_server_is_reachable_where_it_has_the_experiment(server: Any) -> None:
    sender = Sender(Store(server.uri, "e", None))
    assert sender.is_reachable()
    assert server.query == "experiment_id=1"
    server.is_away = True
    assert not sender.is_reachable()


def test_a_store_that_is_away_is_not_reachable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    assert not Sender(Store("http://127.0.0.1:9", "e", None)).is_reachable()
