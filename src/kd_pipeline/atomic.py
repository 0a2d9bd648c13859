"""Folders that appear whole or not at all, however a run ends."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_NEW = ".new-"
_OLD = ".old-"


@contextmanager
def replace_folder(path: str | Path) -> Iterator[Path]:
    """Write a folder beside its final place and swap it in once it is whole and on disk.

    If the block raises, the temporary folder is removed and the folder at `path` stays as it
    was. If the machine dies between the two renames, `path` is missing: never half written.

    Args:
        path: Where the folder is to be; parents are made, a folder there is replaced.

    Yields:
        An empty folder on the same file system, to be filled.

    Raises:
        NotADirectoryError: If `path` is there and is not a folder.
    """
    path = Path(path).absolute()
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(f"{path} is in the way: it is not a folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}{_NEW}", dir=path.parent))
    try:
        # mkdtemp makes folders that only their owner may read; these are meant to be shared.
        temporary.chmod(0o777 & ~_umask())
        yield temporary
        _sync_tree(temporary)
        _swap_in(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _swap_in(temporary: Path, path: Path) -> None:
    # POSIX cannot rename onto a folder that has files in it: the old one steps aside first.
    old = Path(f"{path.parent / ('.' + path.name)}{_OLD}{temporary.name.rpartition('-')[2]}")
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
    if had_old:
        shutil.rmtree(old, ignore_errors=True)


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
