"""The journal sends in order, live, rarely, and never raises."""

import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kd_pipeline.tracking.journal import Journal, run_ids_of
from kd_pipeline.tracking.operations import (
    CloseRun,
    LogMetrics,
    LogParams,
    OpenRun,
    Operation,
    Point,
    SetTags,
)
from kd_pipeline.tracking.sender import Sender
from kd_pipeline.tracking.store import Store
from kd_pipeline.tracking.unsent import Unsent

STORE = Store("http://127.0.0.1:9", "e", None)


class FakeSender(Sender):
    """Takes note of what it is sent; fails where told."""

    def __init__(self) -> None:
        super().__init__(STORE)
        self.sent: list[Operation] = []
        self.refused: type[Operation] | None = None
        self.is_away = False
        self.num_tries = 0

    def send(self, operation: Operation) -> None:
        self.num_tries += 1
        if self.is_away or (self.refused and isinstance(operation, self.refused)):
            raise ConnectionError("nobody there\nat all")
        if isinstance(operation, OpenRun):
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
    journal = Journal(fake, unsent)
    yield journal
    journal.close()


def epoch(step: int) -> LogMetrics:
    return LogMetrics("a", (Point("train/loss", 1.0, step, step),))


def test_nothing_happens_before_the_start(journal: Journal, fake: FakeSender) -> None:
    journal.put(OpenRun("a", {}))
    time.sleep(0.05)
    assert fake.num_tries == 0
    journal.wait()
    assert len(fake.sent) == 1


def test_order_is_kept_and_points_come_before_the_end(journal: Journal, fake: FakeSender) -> None:
    operations = [OpenRun("a", {}), LogParams("a", {}), epoch(1), epoch(2), CloseRun("a", "FAILED")]
    for operation in operations:
        journal.put(operation)
    journal.wait()
    assert [type(sent) for sent in fake.sent if not isinstance(sent, LogMetrics)] == [
        OpenRun,
        LogParams,
        CloseRun,
    ]
    points = [
        p.step for sent in fake.sent[:-1] if isinstance(sent, LogMetrics) for p in sent.points
    ]
    assert points == [1, 2]


def test_points_arrive_while_training_goes_on(
    journal: Journal, fake: FakeSender, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kd_pipeline.tracking.journal.FLUSH_SECONDS", 0.1)
    journal.start()
    for step in range(1, 201):
        journal.put(epoch(step))
    deadline = time.monotonic() + 5
    while sum(len(sent.points) for sent in fake.sent if isinstance(sent, LogMetrics)) < 200:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert fake.num_tries < 20  # 200 epochs are not 200 calls


def test_a_store_that_is_away_is_said_once_and_all_is_kept(
    journal: Journal, fake: FakeSender, unsent: Unsent, caplog: pytest.LogCaptureFixture
) -> None:
    fake.is_away = True
    for operation in (
        OpenRun("a", {}),
        epoch(1),
        SetTags("a", {"t": "u"}),
        CloseRun("a", "FAILED"),
    ):
        journal.put(operation)
    journal.wait()
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "http://127.0.0.1:9 cannot be reached (nobody there)" in record.getMessage()
    assert str(unsent.file) in record.getMessage()
    assert fake.num_tries == 1  # once away, it is not asked again
    kinds = [line.split('"')[3] for line in unsent.file.read_text().splitlines()]
    assert kinds == ["Store", "OpenRun", "LogMetrics", "SetTags", "CloseRun"]


def test_a_refused_operation_does_not_stop_the_others(
    journal: Journal, fake: FakeSender, unsent: Unsent, caplog: pytest.LogCaptureFixture
) -> None:
    fake.refused = SetTags
    for operation in (OpenRun("a", {}), SetTags("a", {}), SetTags("a", {}), epoch(1)):
        journal.put(operation)
    journal.wait()
    assert [type(sent) for sent in fake.sent] == [OpenRun, LogMetrics]
    assert [r.getMessage() for r in caplog.records if "refused SetTags of a" in r.getMessage()]
    assert len(caplog.records) == 1
    assert unsent.file.read_text().count("SetTags") == 2


def test_a_full_disk_does_not_stop_training_either(
    journal: Journal, fake: FakeSender, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fake.is_away = True
    (tmp_path / "unsent-group.jsonl").mkdir()
    journal.put(OpenRun("a", {}))
    journal.put(CloseRun("a", "FINISHED"))
    journal.wait()
    assert "cannot be kept either" in caplog.text


def test_the_thread_ends_with_the_journal(journal: Journal) -> None:
    journal.close()
    deadline = time.monotonic() + 5
    while any(thread.name == "mlflow" for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_ids_are_those_of_runs_that_the_store_knows(journal: Journal) -> None:
    journal.put(OpenRun("a", {}))
    assert run_ids_of(journal, ["b", "a"]) == ["id of a"]
