"""Files and folders that appear whole or not at all, however a run ends."""

import glob
import os
import secrets
import shutil
import sys
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

_NEW = ".new-"
_OLD = ".old-"


@contextmanager
def replace_folder(path: str | Path) -> Iterator[Path]:
    """Write a folder beside its final place and swap it in once it is whole and on disk.

    If the block raises, the temporary folder is removed and the folder at `path` stays as it
    was. If the machine dies between the two renames, `path` is missing: never half written.
    What a run that was killed has left beside `path` is removed.

    Args:
        path: Where the folder is to be; parents are made, a folder there is replaced. A link is
            followed: what it points to is replaced, and the link stays.

    Yields:
        An empty folder on the same file system, to be filled.

    Raises:
        NotADirectoryError: If `path` is there and is not a folder.
    """
    path = Path(path).resolve()
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(f"{path} is in the way: it is not a folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path)
    temporary, lock = _new_folder(path)
    try:
        # mkdtemp makes folders that only their owner may read; these are meant to be shared.
        temporary.chmod(0o777 & ~_umask())
        yield temporary
        _sync_tree(temporary)
        _swap_in(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        lock.release()


@contextmanager
def replace_file(path: str | Path) -> Iterator[Path]:
    """Write a file beside its final place and rename it over that once it is on disk.

    If the block raises, the file at `path` stays as it was. Killed at any instant, `path` is the
    old file or the whole new one; what may be left is a hidden `.new` file beside it, which the
    next writing takes over.

    Yields:
        Where to write the file.
    """
    path = Path(path).absolute()
    temporary = path.parent / f".{path.name}{_NEW[:-1]}"
    try:
        yield temporary
        _sync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync(path.parent)


def move_folder(filled: str | Path, path: str | Path) -> None:
    """Put a folder that is already filled where another one is, whole or not at all.

    Args:
        filled: The folder; it is gone afterwards. From another file system it is copied first.
        path: Where it is to be; parents are made, a folder there is replaced. Links are followed,
            so that a store stays on the disk that it was linked to.

    Raises:
        NotADirectoryError: If `path` is there and is not a folder.
    """
    filled, path = Path(filled).resolve(), Path(path).resolve()
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(f"{path} is in the way: it is not a folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    if filled.stat().st_dev != path.parent.stat().st_dev:
        with replace_folder(path) as temporary:
            shutil.copytree(filled, temporary, dirs_exist_ok=True)
        shutil.rmtree(filled)
        return
    _sweep(path)
    _sync_tree(filled)
    _swap_in(filled, path)
    _sync(filled.parent)


class Lock:
    """Says that a run is at work; the system lets go of it however that run ends.

    Another taking of it is refused while it is held, also within the same process.
    """

    def __init__(self, path: Path) -> None:
        """Take the lock, without waiting for it.

        Args:
            path: A file, which is made if missing and stays, or a folder that is there.

        Raises:
            BlockingIOError: If it is held.
            OSError: If the file system has no locks, or the path is not there.
        """
        flags = os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT
        descriptor = os.open(path, flags, 0o666)
        try:
            _lock(descriptor)
        except OSError:
            os.close(descriptor)
            raise
        self._release = weakref.finalize(self, os.close, descriptor)

    def release(self) -> None:
        """Let go, which happens at the latest when nothing refers to the lock any more."""
        self._release()

    def __deepcopy__(self, memo: object) -> "Lock":
        """A copy of what is locked is still the same thing."""
        return self


class NoLock:
    """Where a file system has no locks: nothing is refused, and nothing is swept."""

    def release(self) -> None:
        """Nothing is held."""


def _lock(descriptor: int) -> None:
    if sys.platform == "win32":
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except PermissionError as error:
            raise BlockingIOError(*error.args) from error
    else:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _new_folder(path: Path) -> tuple[Path, Lock | NoLock]:
    """A folder beside `path`, locked so that nobody sweeps it while it is filled."""
    while True:
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}{_NEW}", dir=path.parent))
        try:
            lock = Lock(temporary)
        except (BlockingIOError, FileNotFoundError):
            continue  # Swept between its making and its locking.
        except OSError:
            return temporary, NoLock()
        if temporary.is_dir():
            return temporary, lock
        lock.release()


def _sweep(path: Path) -> None:
    """Remove half-filled folders of runs that were killed: a lock still held is a run at work."""
    for left in path.parent.glob(f".{glob.escape(path.name)}{_NEW}*"):
        try:
            lock = Lock(left)
        except OSError:
            continue
        shutil.rmtree(left, ignore_errors=True)
        lock.release()


def _swap_in(temporary: Path, path: Path) -> None:
    # POSIX cannot rename onto a folder that has files in it: the old one steps aside first.
    old = path.parent / f".{path.name}{_OLD}{secrets.token_hex(4)}"
    had_old = path.exists()
    if had_old:
        path.rename(old)
    try:
        temporary.rename(path)
    except OSError:
        if had_old:
            old.rename(path)
        raise
    _sync(path.parent)
    # Also what a run that was killed between its renames left aside.
    for left in path.parent.glob(f".{glob.escape(path.name)}{_OLD}*"):
        shutil.rmtree(left, ignore_errors=True)


def _sync_tree(folder: Path) -> None:
    for parent, _, names in os.walk(folder):
        for name in names:
            _sync(Path(parent, name))
        _sync(Path(parent))


def _sync(path: Path) -> None:
    if path.is_dir() and os.name == "nt":
        return  # Windows has no file descriptors of folders.
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
