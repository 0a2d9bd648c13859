"""Image files below folders: regular files only, each folder once, raster formats only."""

import io
import os
import stat
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from PIL import Image

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff"})
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
"""What a file may hold, whatever its name: Pillow would run Ghostscript on a PostScript file."""
MAX_FILE_BYTES = 2**31
"""A file is read whole. 178,956,970 pixels of 4 bytes are a third of it."""


class FoundFile(NamedTuple):
    """A file that is named like an image, or a repeated folder."""

    folder: int
    """Position among the folders that were walked."""
    path: str
    """Relative to the root, POSIX."""
    repeated: bool = False
    """Whether it is a folder that is listed already."""


@dataclass(frozen=True)
class FileReader:
    """Reader of image files; a key is a path relative to `root`."""

    root: str

    def __call__(self, key: str) -> Image.Image:
        """Read one regular file and parse its header.

        Raises:
            OSError: If it is no regular file, empty or too large, or of none of `FORMATS`.
        """
        # With os.path: a Path costs a fifth of decoding a small image.
        path = os.path.join(self.root, key)  # noqa: PTH118
        status = os.stat(path)  # noqa: PTH116
        if stat.S_ISDIR(status.st_mode):
            raise OSError("the folder is listed already, under another path")
        if not stat.S_ISREG(status.st_mode):  # To open a named pipe would wait for its writer.
            raise OSError("not a regular file")
        if not 0 < status.st_size <= MAX_FILE_BYTES:
            raise OSError("the file is empty" if not status.st_size else "the file is above 2 GiB")
        # At once: Pillow reads small files in several steps, each releasing Python's lock.
        with open(path, "rb") as file:  # noqa: PTH123
            return open_image(file.read())


def open_image(data: bytes) -> Image.Image:
    """Parse the header of an image file in memory.

    Raises:
        OSError: If it is of none of `FORMATS`.
    """
    return Image.open(io.BytesIO(data), formats=FORMATS)


def walk_image_files(root: str, folders: Sequence[str]) -> Iterator[FoundFile]:
    """Find the files below folders that are named like images, each folder once.

    Links are followed, after all folders that are reached without one: a folder belongs where it
    lies. One that is reached again, as by a link to a folder above it, is given as it stands, for
    the reader to reject. Hidden files and folders are left out: macOS adds `._*.jpg` to archives.

    Args:
        root: What all paths are relative to.
        folders: Where to look, POSIX paths; their parents are not entered.
    """
    parents = {parent for path in folders for parent in PurePosixPath(path).parents}
    seen = {_identity(str(Path(root, parent))) for parent in parents}
    found, links = deque[FoundFile](), deque[FoundFile]()
    for position, path in enumerate(folders):
        start = FoundFile(position, path)
        (links if Path(root, path).is_symlink() else found).append(start)
    while found or links:
        at = (found or links).popleft()
        identity = _identity(os.path.join(root, at.path))  # noqa: PTH118 - a Path per file is slow
        if identity in seen:
            yield at._replace(repeated=True)
            continue
        seen.add(identity)
        for entry in visible_entries(os.path.join(root, at.path)):  # noqa: PTH118
            inside = FoundFile(at.folder, f"{at.path}/{entry.name}".removeprefix("/"))
            if entry.is_dir(follow_symlinks=False):
                found.append(inside)
            elif entry.is_symlink() and os.path.isdir(entry.path):  # noqa: PTH112
                links.append(inside)
            elif os.path.splitext(entry.name)[1].lower() in EXTENSIONS:  # noqa: PTH122
                yield inside


def visible_entries(folder: str) -> list["os.DirEntry[str]"]:
    """What a folder holds, by name, without what is hidden."""
    with os.scandir(folder) as entries:
        visible = [entry for entry in entries if not entry.name.startswith(".")]
    return sorted(visible, key=lambda entry: entry.name)


def _identity(folder: str) -> tuple[int, int]:
    status = os.stat(folder)  # noqa: PTH116
    return status.st_dev, status.st_ino
