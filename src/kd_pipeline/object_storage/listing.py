"""What an artefact consists of: its files with sizes and checksums, as local files and as JSON."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter

from kd_pipeline.checksums import checked_dumps, checked_loads, file_checksum

_BESIDE = ("crc32", "seconds.json")
"""Ends of hidden files beside an artefact that belong to it, such as `.splits.parquet.crc32`."""


@dataclass(frozen=True)
class Listing:
    """Of one artefact, which is a file or a folder."""

    is_folder: bool
    """A folder may be empty."""
    files: Mapping[str, tuple[int, str]]
    """Size in bytes and CRC-32 by path from the artefact's parent."""

    @property
    def text(self) -> str:
        """JSON with its own checksum: equal text is equal content."""
        return checked_dumps(
            {"is_folder": self.is_folder, "files": dict(sorted(self.files.items()))}
        )

    @property
    def content(self) -> dict[str, tuple[int, str]]:
        """The files less those beside it, which state how it was made."""
        return {n: facts for n, facts in self.files.items() if not n.startswith(".")}

    @classmethod
    def from_text(cls, text: str | bytes) -> "Listing":
        """Read it back; TypeError or ValueError where it is damaged."""
        return TypeAdapter(cls).validate_python(checked_loads(text))


def listing_file(path: Path) -> Path:
    """Where the listing of an artefact lies beside it."""
    return path.with_name(f".{path.name}.objects.json")


def artefact_of(listing: str) -> str | None:
    """The name of the artefact beside which a file of this name is the listing, if it is one."""
    start, end = ".", ".objects.json"
    if not (listing.startswith(start) and listing.endswith(end)):
        return None
    return listing[len(start) : -len(end)]


def read_listing(path: Path) -> Listing | None:
    """The listing that was kept when the artefact was last as object storage has it."""
    try:
        return Listing.from_text(listing_file(path).read_bytes())
    except (OSError, ValueError, TypeError):
        return None


def list_files(path: Path, known: Listing | None = None) -> Listing | None:
    """List an artefact; None where there is none. Hidden files inside it are no part of it.

    Args:
        path: The file or folder.
        known: From `read_listing`. While no file was written since, it is returned, which spares
            the reading of all of them.
    """
    if not path.exists():
        return None
    files = {file.relative_to(path.parent).as_posix(): file for file in _files(path)}
    if known is not None and _is_untouched(path, files, known):
        return known
    facts = {name: (file.stat().st_size, file_checksum(file)) for name, file in files.items()}
    return Listing(path.is_dir(), facts)


def _files(path: Path) -> list[Path]:
    beside = [path.with_name(f".{path.name}.{end}") for end in _BESIDE]
    inside = [
        Path(parent, name)
        for parent, folders, names in os.walk(path)
        if not any(part.startswith(".") for part in Path(parent).relative_to(path).parts)
        for name in names
        if not name.startswith(".")
    ]
    return [file for file in (path, *inside, *beside) if file.is_file()]


def _is_untouched(path: Path, files: Mapping[str, Path], known: Listing) -> bool:
    if known.is_folder != path.is_dir() or files.keys() != known.files.keys():
        return False
    kept = listing_file(path).stat().st_mtime_ns
    stats = {name: file.stat() for name, file in files.items()}
    # Also the time of the inode, which a copy that keeps times cannot set back.
    return all(
        stat.st_size == known.files[name][0] and max(stat.st_mtime_ns, stat.st_ctime_ns) <= kept
        for name, stat in stats.items()
    )
