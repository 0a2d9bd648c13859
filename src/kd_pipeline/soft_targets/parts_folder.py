"""Where a store grows part by part, so that a killed run loses no part that was finished.

Beside each finished part lies a note with the part's checksum and the store that it belongs to.
The manifest comes last and the notes go: what is left is a finished store, ready to be moved.
"""

import json
import logging
import os
import shutil
import weakref
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kd_pipeline.atomic import Lock, replace_file
from kd_pipeline.errors import DataError, StaleArtefactError
from kd_pipeline.soft_targets.encoding import encode_logits
from kd_pipeline.soft_targets.manifest import Manifest, Part, seal, unseal
from kd_pipeline.soft_targets.parts import damage, write_part
from kd_pipeline.soft_targets.store import (
    MANIFEST_FILE,
    SoftTargets,
    read_manifest,
    write_manifest,
)

logger = logging.getLogger(__name__)

LogitsOf = Callable[[Part, NDArray[np.int64]], NDArray[np.float32]]
"""From a part and its example ids to logits, float32 [num_rows, num_classes]."""


_LOCKS: weakref.WeakValueDictionary[Path, Lock] = weakref.WeakValueDictionary()
"""By folder: within one process, what was made is simply made again."""


@dataclass(frozen=True)
class PartsFolder:
    """A folder in which one store at a time is made."""

    folder: Path
    """Need not exist."""
    finished: Path | None = None
    """Where the store is moved once it is whole: an earlier one there may lend its parts."""

    def fill(
        self, manifest: Manifest, example_ids: NDArray[np.int64], logits_of: LogitsOf
    ) -> SoftTargets:
        """Make every part that is not there yet, then the manifest.

        A part is there if its bytes are those that were once written for this very store: same
        provenance, encoding, examples, layout and facts. It is looked for here, where an
        interrupted run has left it, and in the finished store. Killed at any instant and called
        again, this ends with the same bytes.

        Args:
            manifest: As `plan_store` gives it.
            example_ids: int64 [num_examples], ascending.
            logits_of: Called for missing and damaged parts only, in order.

        Returns:
            A handle on the finished store in this folder. As long as it is kept and the store is
            not moved from here, other runs are refused.

        Raises:
            DataError: If another run is caching into this folder, or a logit is not finite or
                too large for float16.
        """
        with ExitStack() as on_failure:
            lock = self._lock()
            if lock is not None:
                on_failure.callback(lock.release)
            self.folder.mkdir(parents=True, exist_ok=True)
            finished = self._fill(manifest, example_ids, logits_of)
            on_failure.pop_all()
        return SoftTargets(self.folder, finished, lock)

    def _lock(self) -> Lock | None:
        """Two runs at once would discard or move each other's parts; None where locks are none."""
        folder = self.folder.resolve()
        if held := _LOCKS.pop(folder, None):
            held.release()
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            # Beside the folder, which is moved away; the file stays, for removing it is a race.
            lock = _LOCKS[folder] = Lock(folder.parent / f".{folder.name}.lock")
        except BlockingIOError as error:
            raise DataError(
                f"another run is caching into {self.finished or self.folder}; "
                "wait for it or stop it"
            ) from error
        except OSError as error:
            logger.warning("no lock in %s: no second run may cache there: %s", folder, error)
            return None
        return lock

    def _fill(
        self, manifest: Manifest, example_ids: NDArray[np.int64], logits_of: LogitsOf
    ) -> Manifest:
        staged = self._staged(manifest)
        self._discard_all_but(staged)
        lent = self._lent(manifest)
        parts, counts = [], Counter[str]()
        for part in manifest.layout():
            if made := self._keep(staged.get(part.file), manifest):
                counts["of an interrupted run"] += 1
            elif made := self._borrow(lent.get(part.file), manifest):
                counts["of the finished cache"] += 1
            else:
                made = self._make(part, manifest, example_ids, logits_of)
                counts["made"] += 1
            parts.append(made)
        told = ", ".join(f"{count} {what}" for what, count in counts.items())
        logger.info("soft targets: %d parts, %s", len(parts), told)
        finished = write_manifest(self.folder, replace(manifest, parts=tuple(parts)))
        for part in parts:
            self._note(part).unlink(missing_ok=True)
        return finished

    def _staged(self, manifest: Manifest) -> dict[str, Part]:
        """What lies here of this very store, as far as notes and manifest say."""
        staged = _parts_of(self.folder, manifest)
        store = _identity(manifest)
        for path in self.folder.glob("*.json"):
            try:
                note = unseal(path.read_bytes())
                if note["store"] == store:
                    part = Part.from_dict(note["part"])
                    staged[part.file] = part
            except (ValueError, KeyError, TypeError):
                # A half-written note is of a half-finished part; the manifest is no note.
                continue
        return staged

    def _lent(self, manifest: Manifest) -> dict[str, Part]:
        return {} if self.finished is None else _parts_of(self.finished, manifest)

    def _discard_all_but(self, staged: dict[str, Part]) -> None:
        known = {MANIFEST_FILE, *staged, *(self._note(part).name for part in staged.values())}
        others = [path for path in self.folder.iterdir() if path.name not in known]
        for path in others:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        if num_parts := sum(path.suffix == ".parquet" for path in others):
            logger.info("discarded %d unfinished parts of another cache", num_parts)

    def _keep(self, part: Part | None, manifest: Manifest) -> Part | None:
        """A part that an interrupted run has left, if it is intact."""
        if part is None:
            return None
        if problem := damage(self.folder, part, manifest):
            logger.warning("unfinished soft targets: %s", problem)
            return None
        return part

    def _borrow(self, part: Part | None, manifest: Manifest) -> Part | None:
        """A part of the finished store, if it is intact."""
        if part is None or self.finished is None:
            return None
        if problem := damage(self.finished, part, manifest):
            logger.warning("finished soft targets: %s", problem)
            return None
        with replace_file(self.folder / part.file) as temporary:
            _link_or_copy(self.finished / part.file, temporary)
        self._write_note(part, manifest)
        return part

    def _make(
        self,
        part: Part,
        manifest: Manifest,
        example_ids: NDArray[np.int64],
        logits_of: LogitsOf,
    ) -> Part:
        rows = manifest.rows_of(part.shard)
        ids = example_ids[rows.start : rows.stop]
        encoded = encode_logits(
            logits_of(part, ids),
            manifest.encoding,
            member=part.member,
            view=part.view,
            example_ids=ids,
        )
        # A note of an earlier part of this name would call the new one damaged, or itself intact.
        self._note(part).unlink(missing_ok=True)
        part = write_part(self.folder, part, manifest, ids, encoded)
        self._write_note(part, manifest)
        return part

    def _note(self, part: Part) -> Path:
        return self.folder / f"{part.file}.json"

    def _write_note(self, part: Part, manifest: Manifest) -> None:
        note = {"store": _identity(manifest), "part": part.as_dict()}
        with replace_file(self._note(part)) as temporary:
            temporary.write_text(seal(note), encoding="utf-8")


def _identity(manifest: Manifest) -> str:
    """Equal for equal stores, finished or not."""
    digest: str = json.loads(seal(manifest.head()))["sha256"]
    return digest


def _parts_of(folder: Path, manifest: Manifest) -> dict[str, Part]:
    """The parts that a folder's manifest lists, if it is that of the same store."""
    try:
        found = read_manifest(folder)
    except StaleArtefactError:
        return {}
    if found.head() != manifest.head():
        return {}
    return {part.file: part for part in found.parts}


def _link_or_copy(source: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    try:
        # No part is ever written in place, so two names for one file are as good as two files.
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
