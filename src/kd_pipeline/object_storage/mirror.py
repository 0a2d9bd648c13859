"""A local folder and the objects that it mirrors: artefacts are fetched and kept as wholes.

Beside each artefact on object storage lies its listing, with the checksum of every file. It is
removed before the first file of a new version is sent, and put, where there is none, after the
last: whatever has a listing is whole, and of two processes that write at once one is refused.
"""

import logging
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Protocol, runtime_checkable

from kd_pipeline.atomic import link_or_copy, replace_file, replace_folder
from kd_pipeline.checksums import file_checksum
from kd_pipeline.errors import ObjectStorageError
from kd_pipeline.object_storage.listing import (
    Listing,
    artefact_of,
    list_files,
    listing_file,
    read_listing,
)
from kd_pipeline.object_storage.store import ObjectStore

_LARGE_BYTES = 10**7
"""From here on a transfer takes long enough to be logged."""

logger = logging.getLogger(__name__)


class Mirror:
    """A folder on this disk, in which runs read and write, and its objects."""

    def __init__(self, folder: Path, store: ObjectStore) -> None:
        """Mirror the objects of `store` in `folder`, an absolute path."""
        self.folder = folder
        self.store = store

    def pull(self, path: Path, *, strict: bool = True) -> bool:
        """Bring an artefact to the state that object storage has; files that fit are kept.

        Args:
            path: Below `folder`.
            strict: Otherwise what would be refused counts as not there, and is left alone.

        Returns:
            Whether object storage has it.

        Raises:
            ObjectStorageError: If it is unfinished there, or was changed here since it was last the
                same on both sides.
        """
        kept = self._read(path)
        if kept is None:
            if strict and self._objects(path):
                raise self._refusal(
                    path, "is unfinished there: a run that wrote it was ended, or is at work; "
                    "run the stage that makes it again"
                )  # fmt: skip
            return False
        last = read_listing(path)
        here = list_files(path, last)
        if _has_own(here, last, kept):
            if not strict:
                return False
            raise self._refusal(
                path, "is not what lies here, which was not sent there: run the stage that makes "
                f"it again, or delete {path} to take what is there"
            )  # fmt: skip
        if here != kept:
            self._install(path, kept, here)
        if last != kept:
            _note(path, kept)
        return True

    def pull_all_in(self, folder: Path) -> None:
        """Pull every artefact that lies directly in a folder."""
        for name in self.store.sizes(self._name(folder), recursive=False):
            if (artefact := artefact_of(Path(name).name)) is not None:
                self.pull(folder / artefact)

    def push(self, path: Path) -> None:
        """Send an artefact; what is there already with the same checksums is not sent again.

        Raises:
            ObjectStorageError: If another process has sent another version at the same time.
        """
        last = read_listing(path)
        if (here := list_files(path, last)) is None:
            return
        kept = self._read(path)
        if kept != here:
            self._replace(path, here, kept)
        if last != here:
            _note(path, here)

    def clear(self, path: Path) -> None:
        """Remove an artefact, or all objects below a folder, from object storage."""
        self.store.delete([self._name(listing_file(path)), *self._objects(path)])
        listing_file(path).unlink(missing_ok=True)

    def read(self, file: Path) -> bytes | None:
        """The content of one object; None where there is none."""
        return self.store.read(self._name(file))

    def keep(self, file: Path) -> None:
        """Send one file that is whole in itself."""
        self.store.write(self._name(file), file)

    def keep_first(self, file: Path, content: bytes) -> bytes:
        """Put one object unless it is there.

        Returns:
            What is there by then.
        """
        name = self._name(file)
        if self.store.put_if_absent(name, content):
            return content
        found = self.store.read(name)
        return self.keep_first(file, content) if found is None else found

    def names(self, folder: Path) -> set[str]:
        """Names of the objects directly in a folder."""
        return {Path(name).name for name in self.store.sizes(self._name(folder), recursive=False)}

    def bring(self, folder: Path, names: Iterable[str]) -> None:
        """Fetch single files of a folder that are not here; those that are not there are left."""
        sizes = self.store.sizes(self._name(folder), recursive=False)
        for file in (folder / name for name in names):
            size = sizes.get(self._name(file))
            if size is not None and not file.exists():
                with suppress(FileNotFoundError), replace_file(file) as temporary:
                    # A process that has finished the whole may have removed it by now.
                    self.store.fetch(self._name(file), temporary, size)

    def _name(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()

    def _read(self, path: Path) -> Listing | None:
        text = self.store.read(self._name(listing_file(path)))
        try:
            return None if text is None else Listing.from_text(text)
        except (ValueError, TypeError) as error:
            raise self._refusal(path, f"has a damaged listing, {error}") from error

    def _objects(self, path: Path) -> list[str]:
        """Objects of an artefact that is a file, or below one that is a folder."""
        name = self._name(path)
        return [name] if self.store.has(name) else list(self.store.sizes(name))

    def _replace(self, path: Path, here: Listing, kept: Listing | None) -> None:
        listing, parent = self._name(listing_file(path)), path.parent
        known: Mapping[str, tuple[int, str]] = {}
        if kept is not None:
            known = kept.files
            self.store.delete([listing])
        sent = {self._name(parent / name) for name in here.files}
        # Other programs read a folder of parquet files as one table.
        self.store.delete([name for name in self._objects(path) if name not in sent])
        changed = [name for name, facts in here.files.items() if known.get(name) != facts]
        for name in changed:
            self.store.write(self._name(parent / name), parent / name)
        if not self.store.put_if_absent(listing, here.text.encode()):
            other = self._read(path)
            if other is None or other.content != here.content:
                raise self._refusal(path, "was written by another run at the same time")
        _log("sent", path, here, changed)

    def _install(self, path: Path, kept: Listing, here: Listing | None) -> None:
        """Make the artefact on disk as listed, from what is here and what is fetched."""
        known = {} if here is None else here.files
        changed = {name for name, facts in kept.files.items() if known.get(name) != facts}
        inside = [name for name in kept.files if name.startswith(f"{path.name}/")]
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if kept.is_folder:
                with replace_folder(path) as temporary:
                    for name in inside:
                        target = temporary / Path(name).relative_to(path.name)
                        target.parent.mkdir(parents=True, exist_ok=True)
                        if name in changed:
                            self._fetch(path, name, kept, target)
                        else:
                            link_or_copy(path.parent / name, target)
            for name in changed.difference(inside):
                with replace_file(path.parent / name) as temporary:
                    self._fetch(path, name, kept, temporary)
        except OSError as error:
            reason = error.strerror or str(error)
            raise self._refusal(path, f"cannot be written here: {reason}") from error
        _log("fetched", path, kept, changed)

    def _fetch(self, path: Path, name: str, kept: Listing, target: Path) -> None:
        size, checksum = kept.files[name]
        self.store.fetch(self._name(path.parent / name), target, size)
        if file_checksum(target) != checksum:
            listing = self._name(listing_file(path))
            raise self._refusal(
                path, f"is damaged there, or was written meanwhile (the checksum of {name} "
                f"differs): if it stays so, delete {listing} and run the stage that makes it again"
            )  # fmt: skip

    def _refusal(self, path: Path, problem: str) -> ObjectStorageError:
        return ObjectStorageError(f"{self.store.uri}/{self._name(path)} {problem}")


@runtime_checkable
class FetchesItself(Protocol):
    """A dataset of a folder that nodes fill or look into: it fetches what they ask for."""

    mirror: Mirror | None
    """Of the folder, where it is kept on object storage; ObjectStorageHook sets it."""


def _has_own(here: Listing | None, last: Listing | None, kept: Listing) -> bool:
    """Whether a file here is neither as it was last the same on both sides, nor as it is there."""
    if here is None:
        return False
    known = {} if last is None else last.files
    return any(
        facts not in (known.get(name), kept.files.get(name)) for name, facts in here.files.items()
    )


def _note(path: Path, listing: Listing) -> None:
    """Keep what is now the same on both sides."""
    with replace_file(listing_file(path)) as temporary:
        temporary.write_text(listing.text, encoding="utf-8")


def _log(done: str, path: Path, listing: Listing, changed: Collection[str]) -> None:
    size = sum(listing.files[name][0] for name in changed)
    level = logging.INFO if size >= _LARGE_BYTES else logging.DEBUG
    text = "%s %s: %d of %d files, %.1f MB"
    logger.log(level, text, done, path.name, len(changed), len(listing.files), size / 1e6)
