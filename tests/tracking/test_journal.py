"""The journal sends in order, live, rarely, and never raises."""

import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kd_pipeline.tracking.journal import Journal
from kd_pipeline.tracking.operations import Operation, Point
from kd_pipeline.tracking.sender import Sender
from kd_pipeline.tracking.store import Store
from kd_pipeline.tracking.unsent import Unsent, send_unsent

STORE = Store("http://127.0.0.1:9", "e", None)


class FakeSender(Sender):
    """Keeps what it is sent; fails where asked."""

    def __init__(self) -> None:
        super().__init__(STORE)
        self.sent: list[Operation] = []
        self.refused = ""
        self.is_away = False
        self.num_tries = 0

    def send(self, operation: Operation) -> None:
        self.num_tries += 1
        if self.is_away or operation.kind == self.refused:
            raise ConnectionError("no answer\nat all")
        if operation.kind == "open_run":
            self.run_ids[operation.run] = f"id of {operation.run}"
        self.sent.append(operation)

    def is_reachable(self) -> bool:
        return not self.is_away


@pytest.fixture
def fake() -> FakeSender:
    return FakeSender()


@pytest.fixture
def unsent(tmp_path: Path) -> Unsent:
    return Unsent(tmp_path / "unsent-group.jsonl", STORE)


@pytest.fixture
def journal(fake: FakeSender, unsent: Unsent) -> Iterator[Journal]:
    journal = Journal(fake, unsent, max_wait_seconds=60)
    yield journal
    journal.close()


def open_run(journal: Journal) -> None:
    journal.put(Sender.open_run, "a", tags={}, time_ms=1)


def log_epoch(journal: Journal, step: int) -> None:
    journal.put(Sender.log_metrics, "a", points=[Point("train/loss", 1.0, step, step)])


def close_run(journal: Journal) -> None:
    journal.put(Sender.close_run, "a", status="FAILED", time_ms=2)


def steps(fake: FakeSender) -> list[int]:
    """Of the points that were sent, in their order."""
    return [p.step for sent in fake.sent for p in sent.values.get("points", ())]


def test_nothing_happens_before_the_start(journal: Journal, fake: FakeSender) -> None:
    open_run(journal)
    time.sleep(0.05)
    assert fake.num_tries == 0
    journal.wait()
    assert len(fake.sent) == 1


def test_order_is_kept_and_points_come_before_the_end(journal: Journal, fake: FakeSender) -> None:
    open_run(journal)
    journal.put(Sender.log_params, "a", params={})
    log_epoch(journal, 1)
    log_epoch(journal, 2)
    close_run(journal)
    journal.wait()
    kinds = [sent.kind for sent in fake.sent]
    assert [kind for kind in kinds if kind != "log_metrics"] == [
        "open_run",
        "log_params",
        "close_run",
    ]
    assert kinds[-1] == "close_run"
    assert steps(fake) == [1, 2]


def test_points_arrive_while_training_goes_on(
    journal: Journal, fake: FakeSender, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kd_pipeline.tracking.journal.FLUSH_SECONDS", 0.1)
    journal.start()
    for step in range(1, 201):
        log_epoch(journal, step)
    deadline = time.monotonic() + 5
    while len(steps(fake)) < 200:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert fake.num_tries < 20  # 200 epochs are not 200 calls


def test_a_store_that_is_away_is_said_once_and_all_is_kept(
    journal: Journal, fake: FakeSender, unsent: Unsent, caplog: pytest.LogCaptureFixture
) -> None:
    fake.is_away = True
    open_run(journal)
    log_epoch(journal, 1)
    journal.put(Sender.set_tags, "a", tags={"t": "u"})
    close_run(journal)
    journal.wait()
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "http://127.0.0.1:9 cannot be reached (no answer)" in record.getMessage()
    assert str(unsent.file) in record.getMessage()
    assert fake.num_tries == 1  # once away, it is not asked again
    kinds = [line.split('"')[3] for line in unsent.file.read_text().splitlines()]
    assert kinds == ["Store", "open_run", "log_metrics", "set_tags", "close_run"]


def test_a_refused_operation_does_not_stop_the_others(
    journal: Journal, fake: FakeSender, unsent: Unsent, caplog: pytest.LogCaptureFixture
) -> None:
    fake.refused = "set_tags"
    open_run(journal)
    for _ in range(2):
        journal.put(Sender.set_tags, "a", tags={})
    log_epoch(journal, 1)
    journal.wait()
    assert [sent.kind for sent in fake.sent] == ["open_run", "log_metrics"]
    assert [r.getMessage() for r in caplog.records if "refused set_tags of a" in r.getMessage()]
    assert len(caplog.records) == 1
    assert unsent.file.read_text().count("set_tags") == 2


def test_a_full_disk_does_not_stop_training_either(
    journal: Journal, fake: FakeSender, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fake.is_away = True
    (tmp_path / "unsent-group.jsonl").mkdir()
    open_run(journal)
    close_run(journal)
    journal.wait()
    assert "cannot be kept either" in caplog.text


def wait_for_thread() -> None:
    deadline = time.monotonic() + 30
    while any(thread.name == "mlflow" for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_thread_ends_with_the_journal(journal: Journal) -> None:
    journal.close()
    wait_for_thread()


def test_a_journal_that_never_started_sends_at_its_end_without_a_thread(
    journal: Journal, fake: FakeSender, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the interpreter exits, no thread can be started."""
    open_run(journal)
    with monkeypatch.context() as patch:
        patch.delattr(threading.Thread, "start")
        journal.close()
    assert [sent.kind for sent in fake.sent] == ["open_run"]


def test_a_slow_store_costs_a_stated_time_and_the_rest_is_kept(
    server: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server.delay = 0.5
    store = Store(server.uri, "e", None)
    unsent = Unsent(tmp_path / "unsent-group.jsonl", store)
    journal = Journal(Sender(store), unsent, max_wait_seconds=1.2)
    journal.start()
    waited = 0.0
    for run in "abcdef":
        journal.put(Sender.open_run, run, tags={"kd.group": "g"}, time_ms=1)
        journal.put(Sender.log_metrics, run, points=[Point("train/loss", 1.0, 1, 1)])
        begun = time.monotonic()
        journal.wait()
        waited += time.monotonic() - begun
    begun = time.monotonic()
    journal.close()
    waited += time.monotonic() - begun
    assert 1.0 < waited < 6.0
    (record,) = caplog.records
    assert "has waited 1.2 s" in record.getMessage()
    assert "`mlflow.max_wait_seconds`" in record.getMessage()
    assert "python -m kd_pipeline.tracking" in record.getMessage()
    server.delay = 0
    wait_for_thread()  # Its last call is still on the way.
    assert send_unsent(unsent.file, tmp_path)[1] is None
    assert sorted(run["info"]["run_name"] for run in server.runs) == list("abcdef")


def test_after_it_has_given_up_nothing_more_is_sent(fake: FakeSender, unsent: Unsent) -> None:
    """One call is on the way: of the points of three runs that follow each other, the first."""
    began, goes_on = threading.Event(), threading.Event()
    closed = []

    def send(operation: Operation) -> None:
        fake.sent.append(operation)
        began.set()
        goes_on.wait(30)

    fake.send, fake.close = send, lambda: closed.append(1)  # type: ignore[method-assign]
    journal = Journal(fake, unsent, max_wait_seconds=0.1)
    for run in "abc":
        journal.put(Sender.log_metrics, run, points=[Point("train/loss", 1.0, 1, 1)])
    journal.start()
    assert began.wait(30)
    journal.close()
    assert closed
    goes_on.set()
    wait_for_thread()
    assert [operation.run for operation in fake.sent] == ["a"]
    assert unsent.file.read_text().count("log_metrics") == 3


def test_exporting_a_model_is_not_waiting_for_the_store(
    fake: FakeSender, unsent: Unsent, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = []

    def export(operation: Operation) -> None:
        with fake.exports():
            time.sleep(0.4)
            ended.append(operation)

    monkeypatch.setattr(fake, "send", export)
    journal = Journal(fake, unsent, max_wait_seconds=0.2)
    open_run(journal)
    journal.wait()
    assert len(ended) == 1
    assert not unsent.file.exists()
    journal.close()


def test_a_store_that_returns_during_the_run_has_everything_at_its_end(
    server: Any, unsent: Unsent, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    server.is_away = True
    journal = Journal(Sender(Store(server.uri, "e", None)), unsent, max_wait_seconds=60)
    journal.put(Sender.open_run, "a", tags={"kd.group": "g"}, time_ms=1)
    journal.wait()
    assert "cannot be reached" in caplog.text
    server.is_away = False
    close_run(journal)
    journal.close()
    assert len(server.runs) == 1
    assert server.calls[-1] == "runs/update"
    assert not unsent.file.exists()
    assert "answers again: 2 operations were sent" in caplog.text


def test_the_runs_of_killed_processes_are_closed_now_or_by_the_next_run(
    journal: Journal, fake: FakeSender, unsent: Unsent
) -> None:
    """Sent later it would close runs that are being sent again."""
    fake.is_away = True
    journal.put(Sender.close_dead_runs, "", own_pid=0)
    open_run(journal)
    journal.wait()
    kept = unsent.file.read_text()
    assert "open_run" in kept
    assert "close_dead_runs" not in kept
