"""A queue of operations and the thread that sends them, so that training does not wait."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from itertools import takewhile
from typing import Concatenate, ParamSpec

from kd_pipeline.errors import KdPipelineError
from kd_pipeline.tracking.operations import LOG_METRICS, Operation, batches, merged
from kd_pipeline.tracking.sender import Sender
from kd_pipeline.tracking.store import reason_of
from kd_pipeline.tracking.unsent import Unsent, send_file

logger = logging.getLogger(__name__)

FLUSH_SECONDS = 1.0
"""Between two sendings of points: a call costs 10 ms, be it for one point or for a hundred."""

Values = ParamSpec("Values")


class Journal:
    """Takes operations without delay and sends them in their order from a thread of its own.

    No failure of MLflow is raised: each kind is logged once, and what could not be sent is kept on
    disk. A store that does not answer is tried once more, at the end.
    """

    def __init__(self, sender: Sender, unsent: Unsent, *, max_wait_seconds: float) -> None:
        """Make an idle journal: nothing is imported or sent before `start` or `close`.

        Args:
            sender: Carries the operations out.
            unsent: Keeps those that it cannot.
            max_wait_seconds: How long `wait` and `close` wait for the store, all calls together.
                Then what is left is kept on disk, and all that follows.
        """
        self.sender = sender
        """Its ids of the runs and of the experiment are complete after `wait`."""
        self._unsent = unsent
        self._max_wait, self._waited = max_wait_seconds, 0.0
        self._changed = threading.Condition()
        self._left: deque[Operation] = deque()
        """Those that are being sent come first and stay until that is done."""
        self._flushed_at = 0.0
        self._is_awaited = self._is_closing = self._has_ended = False
        self._away = self._gave_up = False
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
        with self._changed:
            self._left.append(Operation(method.__name__, run, values))
            if self._gave_up:
                self._keep_all()
            self._changed.notify_all()

    def start(self) -> None:
        """Start the thread, unless it runs."""
        if self._thread is None:
            self._has_ended = False
            self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
            self._thread.start()

    def wait(self) -> None:
        """Return when all that was put so far is sent or kept on disk."""
        self.start()
        with self._changed:
            self._is_awaited = True
            self._await(lambda: not self._left)
            self._is_awaited = False

    def close(self) -> None:
        """Send or keep what is left and end the thread."""
        with self._changed:
            self._is_closing = True
            if self._thread is not None:
                self._await(lambda: self._has_ended)
        if self._thread is None:
            self._work()  # At the interpreter's exit no thread can be started.
        self._thread, self._is_closing = None, False
        if self._gave_up:
            self.sender.close()  # Ends the call that the thread waits for.

    def _await(self, condition: Callable[[], bool]) -> None:
        """Wait within what is left of the time; exporting models on this machine does not count."""
        self._changed.notify_all()
        begun, exported = time.monotonic(), self.sender.export_seconds

        def waited() -> float:
            own = self.sender.export_seconds - exported
            return self._waited + time.monotonic() - begun - own

        while not (self._gave_up or self._changed.wait_for(condition, self._max_wait - waited())):
            with self.sender.exporting:  # After an export that goes on.
                if waited() >= self._max_wait:
                    self._give_up()
        self._waited = waited()

    def _give_up(self) -> None:
        """Keep on disk also what is being sent: whether it arrives makes no difference later."""
        self._gave_up = True
        self._warn_once(
            "time",
            f"it has waited {self._max_wait:g} s for MLflow at {self.sender.store.public_uri}, as "
            f"long as `mlflow.max_wait_seconds` allows. {self._kept()}",
        )
        self._keep_all()

    def _work(self) -> None:
        try:
            self._send_all()
        finally:
            self.sender.close()

    def _send_all(self) -> None:
        while operations := self._take():
            names = [(operation.kind, operation.run) for operation in operations]
            for batch in batches(names):
                if self._gave_up:
                    return
                self._send(merged([operations[at] for at in batch]))
            with self._changed:
                if self._gave_up:
                    return
                for _ in operations:
                    self._left.popleft()
                self._changed.notify_all()
        if self._unsent.count and not self._gave_up:
            self._try_once_more()
        with self._changed:
            self._has_ended = True
            self._changed.notify_all()

    def _take(self) -> list[Operation]:
        """The next operation, or all points that come next; none when the journal is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._left or self._is_closing)
            pause = self._flushed_at + FLUSH_SECONDS - time.monotonic()
            self._changed.wait_for(self._has_more_than_points, pause)
            if self._gave_up or not self._left:
                return []
            points = list(takewhile(lambda held: held.kind == LOG_METRICS, self._left))
            if points:
                self._flushed_at = time.monotonic()
            return points or [self._left[0]]

    def _has_more_than_points(self) -> bool:
        pressing = self._is_awaited or self._is_closing or self._gave_up
        return pressing or any(held.kind != LOG_METRICS for held in self._left)

    def _send(self, operation: Operation) -> None:
        if not self._away:
            try:
                self.sender.send(operation)
                return
            except Exception as error:  # Training goes on whatever MLflow raises.
                if self._gave_up:
                    return
                is_away = not self.sender.is_reachable()
                with self._changed:
                    if self._gave_up:
                        return
                    self._away = is_away
                    self._warn_of(operation, error)
        with self._changed:
            if not self._gave_up:
                self._keep(operation)

    def _try_once_more(self) -> None:
        """Send what was kept, if the store answers."""
        try:
            if self.sender.is_reachable():
                num_sent, error = send_file(self._unsent.file, self.sender)
                if error is None:
                    logger.info("MLflow answers again: %d operations were sent", num_sent)
                    self._unsent.count = 0
        except Exception:  # It is kept, and a warning was given.
            logger.debug("not sent", exc_info=True)

    def _keep_all(self) -> None:
        while self._left:
            self._keep(self._left.popleft())

    def _keep(self, operation: Operation) -> None:
        if operation.kind == Sender.close_dead_runs.__name__:
            return  # It is of this moment; the next run does it.
        try:
            self._unsent.keep(operation, self.sender.run_ids)
        except Exception:  # Were this thread to end, `wait` would not return.
            self._warn_once("disk", "operations on MLflow cannot be kept either", trace=True)

    def _kept(self) -> str:
        return f"Kept in {self._unsent.file}; `python -m kd_pipeline.tracking` sends it later."

    def _warn_of(self, operation: Operation, error: Exception) -> None:
        reason = reason_of(error)
        if self._away:
            verb = "used" if isinstance(error, KdPipelineError) else "reached"
            what = f"MLflow at {self.sender.store.public_uri} cannot be {verb}"
        else:
            what = f"MLflow refused {operation.kind} of {operation.run}"
        about = "away" if self._away else operation.kind
        self._warn_once(about, f"{what} ({reason}). {self._kept()}")

    def _warn_once(self, about: str, message: str, *, trace: bool = False) -> None:
        if about not in self._warned:
            self._warned.add(about)
            logger.warning("The run goes on, but %s", message, exc_info=trace)
