"""Files and folders that appear whole or not at all, however a run ends."""

import glob
import os
import re
import secrets
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_NEW = ".new-"
_OLD = ".old-"
_PROCESS = secrets.token_hex(4)


@contextmanager
def replace_folder(path: str | Path) -> Iterator[Path]:
    """Write a folder beside its final place and swap it in once it is whole and on disk.

    If the block raises, the folder at `path` stays as it was. A process killed between the two
    renames leaves no folder at `path`, never half of one. Temporary folders left beside `path` by
    killed processes of this machine are removed.

    Args:
        path: Parents are made; a folder there is replaced. Of a link its target is replaced.

    Yields:
        An empty folder on the same file system, to be filled.

    Raises:
        NotADirectoryError: If `path` is there and is not a folder.
    """
    path = Path(path).resolve()
    _prepare(path)
    owner = f"{os.getpid()}-{_PROCESS}-{secrets.token_hex(4)}@{socket.gethostname()}"
    temporary = path.parent / f".{path.name}{_NEW}{owner}"
    temporary.mkdir()
    try:
        yield temporary
        _sync_tree(temporary)
        _swap_in(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file that is never written in place a second name; where that cannot be, a copy."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


@contextmanager
def replace_file(path: str | Path) -> Iterator[Path]:
    """Write a file beside its final place and rename it over that once it is on disk.

    If the block raises, the file at `path` stays as it was. If the process is killed, `path` is the
    old file or the whole new one, and a hidden `.new` file may stay beside it until the next write.

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


def put_file(path: str | Path, text: str) -> None:
    """Put a file where there is none: of processes that try at once, one does.

    It appears whole and on disk or not at all; a file that is there stays as it is.
    """
    path = Path(path).absolute()
    temporary = path.parent / f".{path.name}{_NEW}{os.getpid()}-{secrets.token_hex(4)}"
    try:
        temporary.write_text(text, encoding="utf-8")
        _sync(temporary)
        with suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync(path.parent)


def move_folder(filled: str | Path, path: str | Path) -> None:
    """Move a filled folder to its place, whole or not at all.

    Args:
        filled: From another file system it is copied first.
        path: Parents are made; a folder there is replaced. Of a link its target is replaced, so
            that a store stays on the disk that it was linked to.

    Raises:
        NotADirectoryError: If `path` is there and is not a folder.
    """
    filled, path = Path(filled).resolve(), Path(path).resolve()
    _prepare(path)
    if filled.stat().st_dev != path.parent.stat().st_dev:
        with replace_folder(path) as temporary:
            shutil.copytree(filled, temporary, dirs_exist_ok=True)
        shutil.rmtree(filled)
        return
    _sync_tree(filled)
    _swap_in(filled, path)
    _sync(filled.parent)


def is_alive(pid: int) -> bool:
    """Whether a process of this id runs on this machine."""
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # It runs, as another user.
    return True


def _prepare(path: Path) -> None:
    """Make the parents of `path`, and remove the temporary folders of killed processes."""
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(f"{path} is in the way: it is not a folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    start = f".{path.name}{_NEW}"
    for left in path.parent.glob(f"{glob.escape(start)}*"):
        if _is_left_over(left.name.removeprefix(start)):
            shutil.rmtree(left, ignore_errors=True)


def _is_left_over(owner: str) -> bool:
    """Whether a temporary folder was filled by a process of this machine that has ended."""
    named = re.fullmatch(r"(\d+)-(\w+)-\w+@(.*)", owner)
    if named is None or named[3] != socket.gethostname():
        return False
    pid = int(named[1])
    # A container that is started again has the same host name and process ids as before.
    return not is_alive(pid) or (pid == os.getpid() and named[2] != _PROCESS)


def _swap_in(temporary: Path, path: Path) -> None:
    # POSIX cannot rename onto a folder that has files in it: the old one is moved away first.
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
    # Also those of processes that were killed between their renames.
    for left in path.parent.glob(f".{glob.escape(path.name)}{_OLD}*"):
        shutil.rmtree(left, ignore_errors=True)


def _sync_tree(folder: Path) -> None:
    for parent, _, names in os.walk(folder):
        for name in names:
            _sync(Path(parent, name))
        _sync(Path(parent))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
