"""A sender whose work is done by a process of its own.

Importing mlflow, sending and exporting models then neither hold training's Python lock nor touch
its global state, and take another core where there is one.
"""

import logging
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from logging.handlers import QueueHandler
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from types import SimpleNamespace
from typing import Any

from kd_pipeline.errors import KdPipelineError, TrackingStoreError
from kd_pipeline.tracking.operations import Operation
from kd_pipeline.tracking.sender import Sender
from kd_pipeline.tracking.store import Store, reason_of

_EXPORT_BEGINS, _EXPORT_ENDS, _LOGGED, _DONE, _FAILED = range(5)
"""What the process answers: once or more for each call, the last of them _DONE or _FAILED."""

_START = """
import pickle, sys
from multiprocessing.connection import Connection
connection = Connection(int(sys.argv[1]))
sys.path[:] = pickle.loads(connection.recv_bytes())
from kd_pipeline.tracking.sending_process import main
main(connection)
"""
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",  # Others would wait actively for work beside training.
    "CUDA_VISIBLE_DEVICES": "",  # Models are exported on the CPU.
    "MLFLOW_ENABLE_ASYNC_LOGGING": "false",  # What is answered is done.
}


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
        self._process: _Process | None = None

    def send(self, operation: Operation) -> None:
        """Send one operation."""
        self._call("send", operation)

    def is_reachable(self) -> bool:
        """Whether the store answers at all."""
        try:
            return bool(self._call("is_reachable"))
        except TrackingStoreError:  # No process can be started.
            return False

    def close(self) -> None:
        """End the process, whatever it does; all that was answered is done."""
        process, self._process = self._process, None
        if process is not None:
            process.close()

    def _call(self, name: str, *arguments: Any) -> Any:
        """Call a method of the other process's sender.

        Raises:
            TrackingStoreError: If the process has ended, or none can be started.
        """
        try:
            if self._process is None:
                self._process = _Process()
                self._process.put(sys.path)
                self._process.put(self.store)
            self._process.put((self.run_ids, name, arguments))
            return self._answer(self._process)
        except (SendingError, KdPipelineError):
            raise
        except Exception as error:  # Of any kind: also what cannot be pickled.
            self.close()
            what = "there is no answer from the process that sends to MLflow"
            raise TrackingStoreError(f"{what} ({type(error).__name__}: {error})") from error

    def _answer(self, process: "_Process") -> Any:
        with ExitStack() as exporting:
            while True:
                kind, content = process.take()
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
                    value, self.run_ids, experiment_id = content
                    if experiment_id is not None:
                        self.experiment_id = experiment_id
                    return value


class _Process:
    """The process, and this end of the connection to it."""

    def __init__(self) -> None:
        self._connection, theirs = Pipe()
        self._folder = tempfile.mkdtemp()  # For its own temporary files: it may be killed.
        with theirs:
            self.popen = subprocess.Popen(  # noqa: S603
                [sys.executable, "-P", "-c", _START, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                env={**os.environ, **_ENVIRONMENT, "TMPDIR": self._folder},
                pass_fds=[theirs.fileno()],
                process_group=0,
            )

    def put(self, request: Any) -> None:
        # Not `send`, whose pickles of tensors are handles of shared memory.
        self._connection.send_bytes(pickle.dumps(request))

    def take(self) -> Any:
        return pickle.loads(self._connection.recv_bytes())  # noqa: S301

    def close(self) -> None:
        self.popen.kill()
        self.popen.wait()
        self._connection.close()
        shutil.rmtree(self._folder, ignore_errors=True)


def _log(record: logging.LogRecord) -> None:
    logger = logging.getLogger(record.name)
    if logger.isEnabledFor(record.levelno):
        logger.handle(record)


class _AnsweringSender(Sender):
    """The sender in the process; its answers mark exports, whose time is not waiting for MLflow."""

    def __init__(self, store: Store, connection: Connection) -> None:
        super().__init__(store)
        self._connection = connection
        self._lock = threading.Lock()  # Libraries may log from threads of theirs.

    def answer(self, kind: int, content: Any = None) -> None:
        with self._lock:
            self._connection.send_bytes(pickle.dumps((kind, content)))

    @contextmanager
    def exports(self) -> Iterator[None]:
        self.answer(_EXPORT_BEGINS)
        try:
            yield
        finally:
            self.answer(_EXPORT_ENDS)

    def call(self, name: str, arguments: Any) -> None:
        try:
            value = getattr(self, name)(*arguments)
        except Exception as error:  # Of mlflow, requests or sqlalchemy: not imported over there.
            self.answer(_FAILED, (isinstance(error, KdPipelineError), reason_of(error)))
            return
        # Not `self.experiment_id`, which would make the experiment.
        self.answer(_DONE, (value, self.run_ids, vars(self).get("experiment_id")))


def main(connection: Connection) -> None:
    """Answer until the other process has ended."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # It ends with the other process.
    with suppress(EOFError, OSError):
        sender = _AnsweringSender(pickle.loads(connection.recv_bytes()), connection)  # noqa: S301
        forward = QueueHandler(SimpleNamespace(put_nowait=lambda one: sender.answer(_LOGGED, one)))
        logging.basicConfig(level=logging.INFO, handlers=[forward])
        while True:
            run_ids, name, arguments = pickle.loads(connection.recv_bytes())  # noqa: S301
            sender.run_ids |= run_ids
            sender.call(name, arguments)
