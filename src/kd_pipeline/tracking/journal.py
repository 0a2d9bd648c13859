"""A queue of operations and the thread that sends them, so that training does not wait."""

import logging
import queue
import threading
import time
from collections.abc import Callable
from typing import Concatenate, ParamSpec

from kd_pipeline.tracking.operations import Operation, Point
from kd_pipeline.tracking.sender import Sender, kind_of
from kd_pipeline.tracking.unsent import Unsent

logger = logging.getLogger(__name__)

FLUSH_SECONDS = 1.0
"""Between two sendings of points: a call costs 10 ms, be it for one point or for a hundred."""

_MAX_REASON = 150
_LOG_METRICS = kind_of(Sender.log_metrics)

Values = ParamSpec("Values")


class Journal:
    """Takes operations without delay and sends them in their order from a thread of its own.

    No failure of MLflow is raised: each kind is logged once, and what could not be sent is kept on
    disk. A store that does not answer is not tried again.
    """

    def __init__(self, sender: Sender, unsent: Unsent) -> None:
        """Make an idle journal: nothing is imported or sent before `start` or `close`."""
        self.sender = sender
        """Its ids of the runs and of the experiment are complete after `wait`."""
        self._unsent = unsent
        self._queue: queue.SimpleQueue[Operation | threading.Event | None] = queue.SimpleQueue()
        self._points: dict[str, list[Point]] = {}
        self._flushed_at = 0.0
        self._away = False
        self._warned: set[str] = set()
        self._thread: threading.Thread | None = None

    def put(
        self,
        method: Callable[Concatenate[Sender, str, Values], None],
        run: str,
        *_: Values.args,
        **values: Values.kwargs,
    ) -> None:
        """Queue the call of a method of `Sender` for a run, by its key."""
        self._queue.put(Operation(kind_of(method), run, values))

    def start(self) -> None:
        """Start the thread, unless it runs."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
            self._thread.start()

    def wait(self) -> None:
        """Return when all that was put so far is sent or kept on disk."""
        self.start()
        self._queue.put(done := threading.Event())
        done.wait()

    def close(self) -> None:
        """Send or keep what is left and end the thread."""
        self._queue.put(None)
        if self._thread is None:
            self._work()  # At the interpreter's exit no thread can be started.
        else:
            self._thread.join()
            self._thread = None

    def _work(self) -> None:
        while True:
            try:
                item = self._queue.get(timeout=FLUSH_SECONDS if self._points else None)
            except queue.Empty:
                self._flush()
                continue
            if isinstance(item, Operation) and item.kind == _LOG_METRICS:
                self._points.setdefault(item.run, []).extend(item.values["points"])
                if time.monotonic() - self._flushed_at >= FLUSH_SECONDS:
                    self._flush()
                continue
            self._flush()
            if item is None:
                return
            if isinstance(item, Operation):
                self._send(item)
            else:
                item.set()

    def _flush(self) -> None:
        for run, points in self._points.items():
            self._send(Operation(_LOG_METRICS, run, {"points": points}))
        self._points = {}
        self._flushed_at = time.monotonic()

    def _send(self, operation: Operation) -> None:
        if not self._away:
            try:
                self.sender.send(operation)
                return
            except Exception as error:  # Training goes on whatever MLflow raises.
                self._away = not self.sender.is_reachable()
                self._warn_of(operation, error)
        try:
            self._unsent.keep(operation, self.sender.run_ids)
        except Exception:  # Were this thread to end, `wait` would not return.
            self._warn_once("disk", "operations on MLflow cannot be kept either", trace=True)

    def _warn_of(self, operation: Operation, error: Exception) -> None:
        reason = (next(iter(str(error).splitlines()), "") or type(error).__name__)[:_MAX_REASON]
        kept = f"Kept in {self._unsent.file}; `python -m kd_pipeline.tracking` sends it later."
        if self._away:
            what = f"MLflow at {self.sender.store.public_uri} cannot be reached"
        else:
            what = f"MLflow refused {operation.kind} of {operation.run}"
        self._warn_once("away" if self._away else operation.kind, f"{what} ({reason}). {kept}")

    def _warn_once(self, about: str, message: str, *, trace: bool = False) -> None:
        if about not in self._warned:
            self._warned.add(about)
            logger.warning("The run goes on, but %s", message, exc_info=trace)
