"""The folder where a store is made part by part: a killed run loses no part that was finished.

A part appears whole or not at all and holds the head of the manifest of its store; the manifest is
written last, and then the folder is moved to its place.
"""

import logging
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from kd_pipeline.atomic import move_folder
from kd_pipeline.errors import DataError, StaleArtefactError
from kd_pipeline.soft_targets.manifest import Manifest, Part
from kd_pipeline.soft_targets.parts import checked_bytes, read_head, recover_part, write_part
from kd_pipeline.soft_targets.seconds import add_seconds, keep_seconds
from kd_pipeline.soft_targets.store import SoftTargets, read_manifest, write_manifest

logger = logging.getLogger(__name__)

LogitsOf = Callable[[Part, NDArray[np.int64]], NDArray[np.float32]]
"""From a part and its example ids to logits, float32 [num_rows, num_classes]."""


@dataclass(frozen=True)
class PartsFolder:
    """A folder in which one store at a time is made."""

    folder: Path
    """Need not exist."""
    finished: Path | None = None
    """Where the store is moved once it is whole; parts of the same store there are reused."""

    def fill(
        self, manifest: Manifest, example_ids: NDArray[np.int64], logits_of: LogitsOf
    ) -> SoftTargets:
        """Make every part that is not there yet, then the manifest, and move all to `finished`.

        A part of the same store (provenance, encoding, examples, layout and facts) is taken from
        here, where an interrupted run has left it, or from `finished`. Killed at any instant and
        called again, this ends with the same bytes. What each part took is noted beside the store.

        `logits_of` is called for missing and damaged parts only, in order; the manifest is that
        of `plan_store`, and `example_ids` are int64 [num_examples], ascending.

        Raises:
            DataError: If another run is caching into this folder, or a logit is not finite or
                too large for float16.
        """
        store = self.finished or self.folder
        with self._only_run():
            self.folder.mkdir(exist_ok=True)
            self._discard_others(manifest)
            finished = self._finished_parts(manifest)
            parts, counts = [], Counter[str]()
            for part in manifest.layout():
                if made := self._recover(part, manifest):
                    counts["of an interrupted run"] += 1
                elif made := self._copy(finished.get(part.file), manifest):
                    counts["of the finished cache"] += 1
                else:
                    ids = example_ids[manifest.rows_of(part.shard)]
                    started = time.perf_counter()
                    made = write_part(self.folder, part, manifest, ids, logits_of(part, ids))
                    add_seconds(store, made, time.perf_counter() - started)
                    counts["made"] += 1
                parts.append(made)
            shown = ", ".join(f"{count} {what}" for what, count in counts.items())
            logger.info("soft targets: %d parts, %s", len(parts), shown)
            written = write_manifest(self.folder, manifest, parts)
            if self.finished is not None:
                move_folder(self.folder, self.finished)
            keep_seconds(store, parts)
        return SoftTargets(store, written)

    def _only_run(self) -> AbstractContextManager[object]:
        """Two runs at once would discard or move each other's parts."""
        folder = self.folder.resolve()
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            # Beside the folder, which is moved away.
            return FileLock(folder.parent / f".{folder.name}.lock", timeout=0).acquire()
        except Timeout as error:
            raise DataError(
                f"another run is caching into {self.finished or self.folder}; "
                "wait for it or stop it"
            ) from error
        except OSError as error:
            logger.warning("no lock in %s: no second run may cache there: %s", folder.parent, error)
            return nullcontext()

    def _discard_others(self, manifest: Manifest) -> None:
        """Remove whatever an interrupted run of another store has left, and half-written files."""
        head = manifest.head()
        wanted = {part.file: part.place | head for part in manifest.layout()}
        others = [
            path
            for path in self.folder.iterdir()
            # One without a readable head is damaged: it is made anew.
            if path.name not in wanted or read_head(path) not in (None, wanted[path.name])
        ]
        for path in others:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        if num_parts := sum(path.suffix == ".parquet" for path in others):
            logger.info("discarded %d unfinished parts of another cache", num_parts)

    def _finished_parts(self, manifest: Manifest) -> dict[str, Part]:
        """The parts in `finished` by file, if the store there is the same."""
        if self.finished is None:
            return {}
        try:
            found = read_manifest(self.finished)
        except StaleArtefactError:
            return {}
        same = found.head() == manifest.head()
        return {part.file: part for part in found.parts} if same else {}

    def _recover(self, part: Part, manifest: Manifest) -> Part | None:
        """A part that an interrupted run has left, if it is intact."""
        if not (self.folder / part.file).exists():
            return None
        try:
            return recover_part(self.folder, part, manifest)
        except StaleArtefactError as error:
            logger.warning("unfinished soft targets: %s", error)
            return None

    def _copy(self, part: Part | None, manifest: Manifest) -> Part | None:
        """A part of the finished store, if it is intact."""
        if part is None or self.finished is None:
            return None
        try:
            checked_bytes(self.finished, part, manifest)
        except StaleArtefactError as error:
            logger.warning("finished soft targets: %s", error)
            return None
        source, target = self.finished / part.file, self.folder / part.file
        target.unlink(missing_ok=True)
        try:
            # No part is ever written in place: two names for one file are as good as two files.
            os.link(source, target)
        except OSError:
            shutil.copyfile(source, target)
        return part
