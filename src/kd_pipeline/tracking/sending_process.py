"""A sender whose work is done by a process of its own.

Importing mlflow, sending and exporting models then neither hold training's Python lock nor touch
its global state, and take another core where there is one.
"""

import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cached_property
from logging.handlers import QueueHandler
from types import SimpleNamespace
from typing import IO, Any, cast

from kd_pipeline.errors import KdPipelineError, TrackingStoreError
from kd_pipeline.tracking.operations import Operation
from kd_pipeline.tracking.sender import Sender
from kd_pipeline.tracking.store import Store, reason_of

_EXPORT_BEGINS, _EXPORT_ENDS, _LOGGED, _DONE, _FAILED = range(5)
"""What the process answers: once or more for each call, the last of them _DONE or _FAILED."""


class SendingError(RuntimeError):
    """An error of MLflow in the other process, as text."""


class SendingProcess(Sender):
    """Calls a `Sender` in another process, which the first call starts.

    It is in a process group of its own, so that Ctrl-C does not end it before the last operation,
    and ends by itself when this process has ended, however that was. If it is killed, the call
    fails and the next one starts another.
    """

    def __init__(self, store: Store) -> None:
        """Hold a store."""
        super().__init__(store)
        self._process: subprocess.Popen[bytes] | None = None

    def send(self, operation: Operation) -> None:
        """Send one operation."""
        self._call("send", operation)

    def is_reachable(self) -> bool:
        """Whether the store answers at all."""
        try:
            return bool(self._call("is_reachable"))
        except TrackingStoreError:  # No process can be started.
            return False

    @cached_property
    def experiment_id(self) -> str:
        """Id of the store's experiment, which is made if missing."""
        return str(self._call("experiment_id"))

    def close(self) -> None:
        """End the process, whatever it does; all that was answered is done."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            with suppress(OSError), process:
                """Closes the pipes and waits."""

    def _call(self, name: str, *arguments: Any) -> Any:
        """Get an attribute of the other process's sender, or call it.

        Raises:
            TrackingStoreError: If the process has ended, or none can be started.
        """
        try:
            if self._process is None:
                self._process = _start(self.store)
            return self._exchange(self._process, (self.run_ids, name, arguments))
        except (OSError, EOFError, ValueError, pickle.PickleError) as error:
            self.close()
            what = "it gets no answer from the process that sends to MLflow"
            raise TrackingStoreError(f"{what} ({error or 'ended'})") from error

    def _exchange(self, process: "subprocess.Popen[bytes]", request: Any) -> Any:
        requests, answers = _pipes(process)
        pickle.dump(request, requests)
        requests.flush()
        with ExitStack() as exporting:
            while True:
                kind, content = pickle.load(answers)  # noqa: S301
                if kind == _EXPORT_BEGINS:
                    exporting.enter_context(self.exports())
                elif kind == _EXPORT_ENDS:
                    exporting.close()
                elif kind == _LOGGED:
                    _log(content)
                elif kind == _FAILED:
                    is_own, reason = content
                    raise (KdPipelineError if is_own else SendingError)(reason)
                else:
                    value, self.run_ids, known = content
                    vars(self).update(known)
                    return value


def _start(store: Store) -> "subprocess.Popen[bytes]":
    # One thread, as others would wait actively for work beside training.
    own = {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    process = subprocess.Popen(  # noqa: S603
        [sys.executable, "-m", __name__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, **own},
        process_group=0,
    )
    pickle.dump(store, _pipes(process)[0])
    return process


def _pipes(process: "subprocess.Popen[bytes]") -> tuple[IO[bytes], IO[bytes]]:
    return cast("IO[bytes]", process.stdin), cast("IO[bytes]", process.stdout)


def _log(record: logging.LogRecord) -> None:
    logger = logging.getLogger(record.name)
    if logger.isEnabledFor(record.levelno):
        logger.handle(record)


class _Answers:
    """Writes answers; from several threads, as libraries may log from theirs."""

    def __init__(self) -> None:
        # What libraries print must not mix with it.
        self._pipe = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        self._lock = threading.Lock()

    def put(self, kind: int, content: Any = None) -> None:
        with self._lock:
            pickle.dump((kind, content), self._pipe)
            self._pipe.flush()


class _AnsweringSender(Sender):
    """Says when it exports: the time does not count as waiting for MLflow."""

    answers: _Answers

    @contextmanager
    def exports(self) -> Iterator[None]:
        self.answers.put(_EXPORT_BEGINS)
        try:
            yield
        finally:
            self.answers.put(_EXPORT_ENDS)


def main() -> None:
    """Answer until the other process has ended."""
    os.nice(10)  # Training goes before it.
    answers, requests = _Answers(), sys.stdin.buffer
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # It ends with the other process.
    forward = QueueHandler(SimpleNamespace(put_nowait=lambda one: answers.put(_LOGGED, one)))
    logging.basicConfig(level=logging.INFO, handlers=[forward])
    with suppress(EOFError, BrokenPipeError):
        sender = _AnsweringSender(pickle.load(requests))  # noqa: S301
        sender.answers = answers
        while True:
            _answer(sender, answers, *pickle.load(requests))  # noqa: S301


def _answer(
    sender: Sender, answers: _Answers, run_ids: dict[str, str], name: str, arguments: Any
) -> None:
    sender.run_ids |= run_ids
    try:
        found = getattr(sender, name)
        value = found(*arguments) if callable(found) else found
    except Exception as error:  # Of mlflow, requests or sqlalchemy, which the other cannot import.
        answers.put(_FAILED, (isinstance(error, KdPipelineError), reason_of(error)))
        return
    known = {key: vars(sender)[key] for key in ("experiment_id",) if key in vars(sender)}
    answers.put(_DONE, (value, sender.run_ids, known))


if __name__ == "__main__":
    main()
