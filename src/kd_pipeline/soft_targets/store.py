"""A finished store of soft targets: a folder of parquet parts and, written last, a manifest."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kd_pipeline.atomic import replace_file, replace_folder
from kd_pipeline.errors import DataError, StaleArtefactError
from kd_pipeline.provenance import check_provenance
from kd_pipeline.soft_targets.encoding import Encoding
from kd_pipeline.soft_targets.manifest import Manifest, Part, Provenance, digest_of_ids
from kd_pipeline.soft_targets.parts import PartRows, part_problem, read_part, write_part
from kd_pipeline.soft_targets.seconds import total_seconds

MANIFEST_FILE = "manifest.json"
ROWS_PER_PART = 65_536
PART_MIB = 64
"""What a part's float32 logits may take in memory where its number of rows is not set."""
_NUM_SHOWN = 20
_REMEDY = (
    "cache them anew: kedro run --pipelines=soft_target_caching"
    " (those of a student: its whole pipeline, --from-nodes=<student>.cache_soft_targets)"
)


@dataclass(frozen=True)
class SoftTargets:
    """A handle on a finished store: rows are read from its folder when they are asked for."""

    folder: Path
    manifest: Manifest

    def check(self, at_hand: Mapping[str, Any], *, name: str = "soft_targets") -> None:
        """Refuse a store that was made from something else: `provenance.check_provenance`."""
        check_provenance(name, self.manifest.provenance.facts(), at_hand, remedy=_REMEDY)

    @property
    def caching_seconds(self) -> float | None:
        """What its parts took to make, together; None where that is not on record."""
        return total_seconds(self.folder, self.manifest.parts)

    @cached_property
    def example_ids(self) -> NDArray[np.int64]:
        """int64 [num_examples], ascending: every member and view has a row for each."""
        return np.concatenate([part.example_ids for part in self.parts(member=0, view=0)])

    def parts(
        self, member: int | None = None, view: int | None = None, shard: int | None = None
    ) -> Iterator[PartRows]:
        """Read part after part, of all or one member, view and shard, in the manifest's order.

        That is by member, view and example id. Each part is checked, and only one is in memory.

        Raises:
            StaleArtefactError: If a part is missing, damaged or of another store.
        """
        manifest = self.manifest
        members = range(manifest.num_members) if member is None else [member]
        views = range(manifest.provenance.num_views) if view is None else [view]
        shards = range(manifest.num_shards) if shard is None else [shard]
        # Not a search through all parts, which students do for every view and shard.
        places = (manifest.part_at.get(place) for place in product(members, views, shards))
        for part in places:
            if part is None:
                continue
            try:
                yield read_part(self.folder, part, manifest)
            except StaleArtefactError as error:
                raise _refusal(self.folder, str(error)) from error


def read_soft_targets(folder: Path) -> SoftTargets:
    """Open a store. Only the sizes of its parts are checked here; the rest is as they are read.

    Raises:
        StaleArtefactError: If a part is missing, has another size, or does not belong there.
    """
    folder = Path(folder)
    manifest, sizes = read_manifest(folder), _sizes(folder)
    found = (part_problem(folder, part, manifest, sizes.get(part.file)) for part in manifest.parts)
    _refuse(folder, manifest, [problem for problem in found if problem])
    return SoftTargets(folder, manifest)


def _sizes(folder: Path) -> dict[str, int]:
    """Bytes of the files of a folder, by name: one listing, not two requests a part."""
    with os.scandir(folder) as entries:
        return {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}


def check_store(soft_targets: SoftTargets) -> None:
    """Read everything once.

    Raises:
        StaleArtefactError: Naming every damaged, missing and foreign part.
    """
    folder, manifest, problems = soft_targets.folder, soft_targets.manifest, []
    for part in manifest.parts:
        try:
            read_part(folder, part, manifest)
        except StaleArtefactError as error:
            problems.append(str(error))
    _refuse(folder, manifest, problems)


def read_manifest(folder: Path) -> Manifest:
    """Read what a store was made from, without reading its rows.

    Raises:
        StaleArtefactError: If there is no manifest or it is not as it was written.
    """
    try:
        # Bytes, so that damage which is no text is refused like any other.
        return Manifest.from_text((folder / MANIFEST_FILE).read_bytes().decode())
    except (OSError, ValueError, TypeError) as error:
        is_missing = isinstance(error, FileNotFoundError)
        problem = "is missing" if is_missing else f"cannot be read, {error}"
        raise StaleArtefactError(
            f"no finished soft targets in {folder}: {MANIFEST_FILE} {problem}; {_REMEDY}"
        ) from error


def write_manifest(folder: Path, manifest: Manifest, parts: Sequence[Part]) -> Manifest:
    """Finish a store: its manifest appears whole or not at all. It is returned as read back."""
    text = replace(manifest, parts=tuple(parts)).as_text()
    with replace_file(folder / MANIFEST_FILE) as temporary:
        temporary.write_bytes(text.encode())
    return Manifest.from_text(text)


def plan_store(
    example_ids: NDArray[np.int64],
    *,
    provenance: Provenance,
    encoding: Encoding,
    facts: Mapping[str, Any],
    rows_per_part: int | None = None,
) -> Manifest:
    """The manifest of a store before its first part is written.

    Args:
        example_ids: int64 [num_examples], ascending.
        provenance: What the logits will be made from.
        encoding: Dense or top-k.
        facts: As `Manifest.facts`.
        rows_per_part: At most so many rows in a file; None is as many as `rows_within_budget`.

    Raises:
        DataError: If there is no example, or the ids do not ascend.
        ParameterError: If the encoding cannot hold so many classes.
    """
    num_classes = len(provenance.class_names)
    encoding.check(num_classes)
    if len(example_ids) == 0 or (np.diff(example_ids) <= 0).any():
        raise DataError("`example_ids` must be ascending and at least one")
    return Manifest(
        provenance=provenance,
        encoding=encoding,
        num_examples=len(example_ids),
        example_ids_digest=digest_of_ids(example_ids),
        rows_per_part=rows_per_part or rows_within_budget(num_classes),
        facts=facts,
    )


def rows_within_budget(num_classes: int) -> int:
    """Rows that keep a part's float32 logits within `PART_MIB`, at most `ROWS_PER_PART`.

    They follow from the number of classes alone, so that bytes repeat.
    """
    rows = PART_MIB * 2**20 // (4 * num_classes)
    # In thousands where there are thousands: common batch sizes then divide a part.
    return min(ROWS_PER_PART, rows - rows % 1024 if rows >= 1024 else rows)


def write_soft_targets(
    folder: Path,
    logits: Sequence[Sequence[NDArray[np.float32]]],
    example_ids: NDArray[np.int64],
    *,
    provenance: Provenance,
    encoding: Encoding | None = None,
    facts: Mapping[str, Any] | None = None,
    rows_per_part: int | None = None,
) -> SoftTargets:
    """Write a whole store from memory; the folder appears, or is replaced, whole or not at all.

    `logits` are float32 [num_examples, num_classes] for each member and, within it, each view. The
    other arguments are those of `plan_store`; the default encoding is dense.
    """
    manifest = plan_store(
        example_ids,
        provenance=provenance,
        encoding=encoding or Encoding(),
        facts=facts or {},
        rows_per_part=rows_per_part,
    )
    with replace_folder(folder) as temporary:
        parts = []
        for part in manifest.layout():
            rows = manifest.rows_of(part.shard)
            values = logits[part.member][part.view][rows]
            parts.append(write_part(temporary, part, manifest, example_ids[rows], values))
        manifest = write_manifest(temporary, manifest, parts)
    return SoftTargets(Path(folder), manifest)


def _refuse(folder: Path, manifest: Manifest, problems: Sequence[str]) -> None:
    # Other parquet readers would take any file of the folder for a part.
    known = {MANIFEST_FILE, *(part.file for part in manifest.parts)}
    names = sorted(path.name for path in folder.iterdir() if path.name not in known)
    foreign = [f"{name} is no part of this store" for name in names if not name.startswith(".")]
    if not (found := [*problems, *foreign]):
        return
    shown = found[:_NUM_SHOWN]
    if (more := len(found) - _NUM_SHOWN) > 0:
        shown.append(f"and {more} more")
    raise _refusal(folder, "; ".join(shown))


def _refusal(folder: Path, problems: str) -> StaleArtefactError:
    return StaleArtefactError(f"`soft_targets` in {folder}: {problems}; {_REMEDY}")
