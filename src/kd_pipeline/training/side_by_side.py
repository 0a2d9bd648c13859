"""Models that train one by one, in as many processes as there are threads.

A step of a small network gains little from a second thread. A second process, which trains another
replicate, gains all that a second core has.

Processes are forked, as those of torch's DataLoader are: they read the pixels and soft targets that
are in memory, and copy none.
"""

import os
import pickle
import signal
import sys
from collections.abc import Callable, Sequence
from copy import copy
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from threading import Thread
from traceback import format_exc
from typing import Any, TypeVar

import torch

from kd_pipeline.errors import ProcessesError, our_cause
from kd_pipeline.events import emit, listening_alone
from kd_pipeline.models.checkpoint import count_macs
from kd_pipeline.models.classifier import Classifier
from kd_pipeline.models.predict import resolve_device
from kd_pipeline.models.state_folder import StateFolder
from kd_pipeline.training.settings import Training

MAX_MACS_PER_STEP = 10_000_000_000
"""Multiply-accumulates of a forward pass on a batch: larger steps have work for all threads, and
would need the memory of several at once."""

Group = TypeVar("Group")
T = TypeVar("T")
Train = Callable[[Group], Sequence[T]]
_EVENT, _RESULT, _ERROR = "event", "result", "error"


def num_processes(
    num_groups: int, classifier: Classifier, training: Training, states: StateFolder
) -> int:
    """How many processes train so many groups of models side by side; 1 is this one alone.

    A rule of settings and sizes, never of timing: sums round otherwise with another number of
    threads. Neither a GPU's context nor connections to object storage survive a fork.
    """
    count = min(num_groups, torch.get_num_threads())
    if count == 1 or training.side_by_side == "never" or sys.platform != "linux":
        return 1
    on_cpu = resolve_device(training.device) == "cpu" and not torch.accelerator.is_available()
    if not (on_cpu and states.is_local):
        return 1
    return count if count_macs(classifier) * training.batch_size <= MAX_MACS_PER_STEP else 1


def train_side_by_side(
    groups: Sequence[Group], train: Train[Group, T], *, num_processes: int
) -> list[T]:
    """Train each group in a process of its own, so many at once; the threads are shared out.

    Events of the processes are emitted again in this one as they come.

    Returns:
        What `train` gives for each group, in the order of the groups.

    Raises:
        ProcessesError: If a process is killed, as the system does when memory is short.
        Exception: What `train` raises, or a listener. The other processes are then ended; their
            trainings go on from their last states.
    """
    num_threads = max(1, torch.get_num_threads() // num_processes)
    waiting, found = list(range(len(groups))), dict[int, Sequence[T]]()
    at_work: dict[Connection, tuple[int, ForkProcess]] = {}
    try:
        while waiting or at_work:
            while waiting and len(at_work) < num_processes:
                number = waiting.pop(0)
                at_work |= _start(number, groups[number], train, num_threads)
            for connection in wait([*at_work]):
                number, process = at_work[connection]  # type: ignore[index]
                kind, value = _receive(connection, process)  # type: ignore[arg-type]
                if kind == _EVENT:
                    emit(value)
                elif kind == _ERROR:
                    raise value
                else:
                    found[number] = value
                    del at_work[connection]  # type: ignore[arg-type]
                    process.join()
    finally:
        for _, process in at_work.values():
            process.kill()
            process.join()
    return [one for number in range(len(groups)) for one in found[number]]


def _start(
    number: int, group: Group, train: Train[Group, T], num_threads: int
) -> dict[Connection, tuple[int, ForkProcess]]:
    context = get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(theirs, group, train, num_threads))
    process.start()
    theirs.close()
    return {ours: (number, process)}


def _receive(connection: Connection, process: ForkProcess) -> tuple[str, Any]:
    try:
        message: tuple[str, Any] = connection.recv()
    except EOFError:
        process.join()
        raise ProcessesError(
            f"a process that trained beside others ended with exit code {process.exitcode}: it was "
            "killed, perhaps for want of memory; the run goes on from its last state, and with "
            "`training.side_by_side: never` one model trains at a time"
        ) from None
    return message


def _work(connection: Connection, group: Group, train: Train[Group, T], num_threads: int) -> None:
    """What a process does from its start to its end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the first one ends others.
    # In a new thread: OpenMP's threads are not copied, and the copy of the thread that used them
    # would wait for them without end.
    own = Thread(target=_train, args=(connection, group, train, num_threads), daemon=True)
    own.start()
    Thread(target=_end_with_parent, daemon=True).start()
    own.join()


def _train(connection: Connection, group: Group, train: Train[Group, T], num_threads: int) -> None:
    def send(kind: str, value: Any) -> None:
        # Not `send`, which would pass tensors by handles that end with this process.
        connection.send_bytes(pickle.dumps((kind, value)))

    torch.set_num_threads(num_threads)
    try:
        with listening_alone(lambda event: send(_EVENT, event)):
            result = train(group)
    except Exception as error:
        send(_ERROR, _portable(error))
    else:
        send(_RESULT, result)


def _portable(error: Exception) -> Exception:
    """An error as another process can raise it; not ours, with the traceback of this one."""
    if our_cause(error) is None:
        error.add_note(format_exc())
    try:
        pickle.dumps(error)
        copy(error)  # As unpickling makes it.
    except Exception:
        return RuntimeError(format_exc())
    return error


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
