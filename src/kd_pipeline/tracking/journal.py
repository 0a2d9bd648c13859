"""A queue of operations and the one thread that sends them, so that training never waits."""

import logging
import queue
import threading
import time
from collections.abc import Sequence

from kd_pipeline.tracking.operations import LogMetrics, Operation, Point
from kd_pipeline.tracking.sender import Sender
from kd_pipeline.tracking.unsent import Unsent

logger = logging.getLogger(__name__)

FLUSH_SECONDS = 1.0
"""Points are sent about this often: one call costs 10 ms, whatever it carries up to a hundred."""

_MAX_REASON = 150


class _Barrier(threading.Event):
    """Set once everything queued before it is done; the last one ends the thread."""

    def __init__(self, *, last: bool) -> None:
        super().__init__()
        self.last = last


class Journal:
    """Takes operations at once and sends them from a thread of its own, in their order.

    Whatever MLflow does, nothing is raised here: a failure is said once, and what could not be
    sent is kept on disk. Once the store does not answer, it is not asked again.
    """

    def __init__(self, sender: Sender, unsent: Unsent) -> None:
        """Make an idle journal: nothing is imported or sent before `start`."""
        self._sender = sender
        self._unsent = unsent
        self._queue: queue.SimpleQueue[Operation | _Barrier] = queue.SimpleQueue()
        self._points: dict[str, list[Point]] = {}
        self._flushed_at = 0.0
        self._away = False
        self._complaints: set[str] = set()
        self._thread: threading.Thread | None = None

    @property
    def sender(self) -> Sender:
        """What is known of the runs; to be read after `wait` only."""
        return self._sender

    def put(self, operation: Operation) -> None:
        """Queue one operation; returns at once."""
        self._queue.put(operation)

    def start(self) -> None:
        """Begin to send, unless it has begun."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
            self._thread.start()

    def wait(self) -> None:
        """Return when all that was put so far is sent or kept on disk."""
        self._pass(_Barrier(last=False))

    def close(self) -> None:
        """Send or keep what is left and end the thread; a later `put` waits for a new `start`."""
        self._pass(_Barrier(last=True))
        self._thread = None

    def _pass(self, barrier: _Barrier) -> None:
        self.start()
        self._queue.put(barrier)
        barrier.wait()

    def _work(self) -> None:
        while True:
            try:
                item = self._queue.get(timeout=FLUSH_SECONDS if self._points else None)
            except queue.Empty:
                self._flush()
                continue
            if isinstance(item, LogMetrics):
                self._points.setdefault(item.run, []).extend(item.points)
                if time.monotonic() - self._flushed_at >= FLUSH_SECONDS:
                    self._flush()
                continue
            self._flush()
            if not isinstance(item, _Barrier):
                self._send(item)
                continue
            item.set()
            if item.last:
                return

    def _flush(self) -> None:
        for run, points in self._points.items():
            self._send(LogMetrics(run, tuple(points)))
        self._points.clear()
        self._flushed_at = time.monotonic()

    def _send(self, operation: Operation) -> None:
        if not self._away:
            try:
                self._sender.send(operation)
            except Exception as error:  # Training goes on whatever MLflow raises.
                self._away = not self._sender.is_reachable()
                self._complain(operation, error)
            else:
                return
        try:
            self._unsent.keep(operation, self._sender.run_ids)
        except Exception:  # This thread must live: others wait for it.
            self._say_once(
                "disk", "what MLflow could not be told cannot be kept either", trace=True
            )

    def _complain(self, operation: Operation, error: Exception) -> None:
        reason = (next(iter(str(error).splitlines()), "") or type(error).__name__)[:_MAX_REASON]
        kept = f"Kept in {self._unsent.file}; `python -m kd_pipeline.tracking` sends it later."
        if self._away:
            where = self._sender.store.public_uri
            self._say_once("away", f"MLflow at {where} cannot be reached ({reason}). {kept}")
        else:
            kind = type(operation).__name__
            self._say_once(kind, f"MLflow refused {kind} of {operation.run} ({reason}). {kept}")

    def _say_once(self, about: str, message: str, *, trace: bool = False) -> None:
        if about not in self._complaints:
            self._complaints.add(about)
            logger.warning("The run goes on, but %s", message, exc_info=trace)


def run_ids_of(journal: Journal, runs: Sequence[str]) -> list[str]:
    """Ids of those of the runs that the store knows, in their order; waits for the journal."""
    journal.wait()
    known = journal.sender.run_ids
    return [known[run] for run in runs if run in known]
