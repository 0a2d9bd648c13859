"""Locks of the operating system: held by one process alone, or by the shards of one piece of work.

A lock ends with its process, however that ends: no file has to be removed by hand.
"""

import glob
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from kd_pipeline.errors import DataError

if TYPE_CHECKING:
    from filelock import FileLock

GATE_SECONDS = 60.0
"""Wait for others that take or give back a lock at this instant; each needs milliseconds."""


def take_lock(file: Path, *, busy: str, shard: str = "") -> "FileLock":
    """Lock a file alone, or as one shard beside the others; who holds it is written into it.

    Args:
        file: Made if missing, with its parents; shards lock files of their own beside it.
        busy: Begin of the message where it is held, such as "another run writes to data".
        shard: As `0-of-4`; empty is alone. Only shards of the same number share a lock.

    Raises:
        DataError: If another process, or another lock in this one, is in the way.
        OSError: If no file can be written or locked there.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    number = shard.rpartition("-of-")[2]
    with _gate(file, busy):
        for other in (file, *_shards(file)):
            if not shard or other == file or not other.name.endswith(f"-of-{number}"):
                _acquire(other, busy).release()
        lock = _acquire(_beside(file, shard) if shard else file, busy)
    start = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    holder = {"pid": os.getpid(), "host": socket.gethostname(), "start": start}
    Path(lock.lock_file).write_text(json.dumps(holder), encoding="utf-8")
    return lock


def take_alone(lock: "FileLock", file: Path, *, busy: str) -> "tuple[FileLock | None, list[str]]":
    """Give a shard's lock back, and lock the file alone if no other shard works.

    Of shards that end at the same time one is the last: it has the file for itself.

    Returns:
        The lock, or None and the other shards that work.
    """
    with _gate(file, busy):
        lock.release()
        at_work = [path.name.removeprefix(f"{file.name}.") for path in _shards(file, held=True)]
        return (None if at_work else _acquire(file, busy)), at_work


@contextmanager
def _gate(file: Path, busy: str) -> Iterator[None]:
    """Held for the instants in which locks change hands, so that they do so one by one."""
    gate = _acquire(_beside(file, "gate"), busy, wait=GATE_SECONDS)
    try:
        yield
    finally:
        gate.release()


def _beside(file: Path, name: str) -> Path:
    return file.parent / f"{file.name}.{name}"


def _shards(file: Path, *, held: bool = False) -> list[Path]:
    """The files that shards have locked, all or those that are locked now."""
    found = sorted(file.parent.glob(f"{glob.escape(file.name)}.*-of-*"))
    return [path for path in found if not held or _is_held(path)]


def _is_held(file: Path) -> bool:
    try:
        _acquire(file, "").release()
    except DataError:
        return True
    return False


def _acquire(file: Path, busy: str, *, wait: float = 0.0) -> "FileLock":
    from filelock import FileLock, Timeout

    lock = FileLock(file, timeout=wait, thread_local=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise DataError(f"{busy}{_holder(file)}: wait for it or stop it") from error
    return lock


def _holder(file: Path) -> str:
    # It may not have been written yet.
    with suppress(OSError, ValueError, KeyError, TypeError):
        found = json.loads(file.read_text(encoding="utf-8"))
        return f" (process {found['pid']} on {found['host']}, since {found['start']})"
    return ""
