"""The folder where a store is made part by part: a killed run loses no part that was finished.

A part appears whole or not at all and holds the head of the manifest of its store; the manifest is
written last, and then the folder is moved to its place. Several processes may make disjoint parts;
the one that ends last does the rest, with the folder for itself.
"""

import logging
import shutil
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kd_pipeline.atomic import link_or_copy, move_folder, put_file
from kd_pipeline.checksums import checked_dumps, checked_loads
from kd_pipeline.errors import StaleArtefactError
from kd_pipeline.locks import take_alone, take_lock
from kd_pipeline.shards import Shard
from kd_pipeline.soft_targets.manifest import Manifest, Part
from kd_pipeline.soft_targets.parts import checked_bytes, read_head, recover_part, write_part
from kd_pipeline.soft_targets.seconds import add_seconds, keep_seconds
from kd_pipeline.soft_targets.shards import describe_missing, parts_of
from kd_pipeline.soft_targets.shared_parts import PLAN_FILE, SharedParts
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
    shared: SharedParts | None = None
    """The parts on object storage, if they are kept there."""

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
        with ExitStack() as held:
            self._lock_alone(held)
            self.folder.mkdir(exist_ok=True)
            self._discard_others(manifest)
            layout = manifest.layout()
            if self.shared is not None:
                self.shared.begin(manifest, layout, alone=True)
            parts = self._make(layout, manifest, example_ids, logits_of)
            return self._finish(manifest, parts)

    def fill_shard(
        self,
        shard: Shard,
        manifest: Manifest,
        example_ids: NDArray[np.int64],
        logits_of: LogitsOf,
    ) -> None:
        """As `fill`, but the parts of one shard, beside processes that make those of others.

        The shard that ends when no other works makes the manifest and moves all to `finished`, if
        all parts are there. Otherwise what is missing is logged: that shard run again ends with
        the same bytes as `fill`, and so does `fill`.

        Raises:
            DataError: As `fill`; also if the same shard, or one of another number, works here.
            StaleArtefactError: If other shards have begun another store here.
        """
        if not (mine := parts_of(shard, layout := manifest.layout())):
            text = (
                "soft targets: shard %s has nothing to do: the store has %d parts (rows_per_part)"
            )
            logger.info(text, shard.name, len(layout))
            return
        with ExitStack() as held:
            lock = take_lock(self._lock_file, busy=self._busy, shard=shard.name)
            held.callback(lock.release)
            self.folder.mkdir(exist_ok=True)
            self._agree(manifest)
            if self.shared is not None:
                self.shared.begin(manifest, mine, alone=False)
            self._make(mine, manifest, example_ids, logits_of, shard.name)
            alone, at_work = take_alone(lock, self._lock_file, busy=self._busy)
            if alone is not None:
                held.callback(alone.release)
            self._finish_shards(manifest, shard, at_work)

    @property
    def _busy(self) -> str:
        return f"another run is caching into {self.finished or self.folder}"

    @property
    def _lock_file(self) -> Path:
        folder = self.folder.resolve()
        return folder.parent / f".{folder.name}.lock"  # Beside the folder, which is moved away.

    def _lock_alone(self, held: ExitStack) -> None:
        """Two runs at once would discard or move each other's parts."""
        try:
            held.callback(take_lock(self._lock_file, busy=self._busy).release)
        except OSError as error:
            where = self._lock_file.parent
            logger.warning("no lock in %s: no second run may cache there: %s", where, error)

    def _agree(self, manifest: Manifest) -> None:
        """Refuse to make parts of another store than that which shards have begun here."""
        plan = self.folder / PLAN_FILE
        put_file(plan, checked_dumps(manifest.head()))
        begun = checked_loads(plan.read_bytes())
        if found := manifest.differences_from(begun, left="other shards", right="this one"):
            raise StaleArtefactError(
                f"other shards have begun another store in {self.folder}: {' and '.join(found)}; "
                "give all shards the same settings, or remove that folder to begin anew"
            )

    def _make(
        self,
        layout: Sequence[Part],
        manifest: Manifest,
        example_ids: NDArray[np.int64],
        logits_of: LogitsOf,
        shard: str = "",
    ) -> list[Part]:
        """Those parts of the layout that are nowhere intact; all of them with their checksums."""
        finished, counts, parts = self._finished_parts(manifest), Counter[str](), []
        for part in layout:
            if made := self._recover(part, manifest):
                counts["of an interrupted run"] += 1
            elif made := self._copy(finished.get(part.file), manifest):
                counts["of the finished cache"] += 1
            else:
                ids = example_ids[manifest.rows_of(part.shard)]
                started = time.perf_counter()
                made = write_part(self.folder, part, manifest, ids, logits_of(part, ids))
                taken = time.perf_counter() - started
                add_seconds(self.finished or self.folder, made, taken)
                if self.shared is not None:
                    self.shared.keep(made)
                counts["made"] += 1
            parts.append(made)
        shown = ", ".join(f"{count} {what}" for what, count in counts.items())
        whose = f" of shard {shard}" if shard else ""
        logger.info("soft targets%s: %d parts, %s", whose, len(parts), shown)
        return parts

    def _finish_shards(self, manifest: Manifest, shard: Shard, at_work: Sequence[str]) -> None:
        """Finish the store if no other shard works on it and all its parts are there."""
        if self.shared is not None:
            self.shared.fetch_finished(manifest)
        layout, finished = manifest.layout(), self._finished_parts(manifest)
        elsewhere = set() if self.shared is None else self.shared.names()
        listed = {*finished, *elsewhere, *(path.name for path in self.folder.iterdir())}
        there = {part.file for part in layout if part.file in listed}
        if not at_work and len(there) == len(layout):
            self._discard_others(manifest)
            if self.shared is not None:
                self.shared.bring(layout)
            found = [
                self._recover(part, manifest) or self._copy(finished.get(part.file), manifest)
                for part in layout
            ]
            parts = [part for part in found if part is not None]
            there = {part.file for part in parts}
            if len(parts) == len(layout):
                self._finish(manifest, parts)
        logger.info("soft targets: %s", describe_missing(shard.count, layout, there, at_work))

    def _finish(self, manifest: Manifest, parts: Sequence[Part]) -> SoftTargets:
        store = self.finished or self.folder
        written = write_manifest(self.folder, manifest, parts)
        if self.finished is not None:
            move_folder(self.folder, self.finished)
        keep_seconds(store, parts)
        if self.shared is not None:
            self.shared.publish()
        return SoftTargets(store, written)

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
        link_or_copy(source, target)
        return part
