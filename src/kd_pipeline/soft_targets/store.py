"""A finished store of soft targets: a folder of parquet parts and, written last, a manifest."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kd_pipeline.atomic import Lock, replace_file, replace_folder
from kd_pipeline.errors import DataError, StaleArtefactError
from kd_pipeline.soft_targets.encoding import Encoding, encode_logits
from kd_pipeline.soft_targets.manifest import Manifest, Part, Provenance, digest_of_ids
from kd_pipeline.soft_targets.parts import (
    PartRows,
    part_problem,
    read_example_ids,
    read_head,
    read_part,
    write_part,
)

MANIFEST_FILE = "manifest.json"
ROWS_PER_PART = 65_536
PART_MIB = 64
"""What a part's float32 logits may take in memory where nobody says how many rows it has."""
_NUM_SHOWN = 20


@dataclass(frozen=True)
class SoftTargets:
    """A handle on a finished store: rows are read from its folder when they are asked for."""

    folder: Path
    manifest: Manifest
    lock: Lock | None = field(default=None, repr=False, compare=False)
    """Of the folder where it was made, until it is moved from there."""

    @cached_property
    def example_ids(self) -> NDArray[np.int64]:
        """int64 [num_examples], ascending: every member and view has a row for each."""
        first = [part for part in self.manifest.parts if part.member == part.view == 0]
        with _naming(self.folder):
            ids = [read_example_ids(self.folder, part, self.manifest) for part in first]
            if digest_of_ids(np.concatenate(ids)) != self.manifest.example_ids_digest:
                raise StaleArtefactError("the parts hold other examples than the manifest says")
        return np.concatenate(ids)

    def parts(
        self, member: int | None = None, view: int | None = None, shard: int | None = None
    ) -> Iterator[PartRows]:
        """Read part after part, each checked; only one is in memory at a time.

        Args:
            member: Only this one's; None is all, in order.
            view: Only this one's; None is all, in order.
            shard: Only this one's; None is all, in order.

        Yields:
            Rows in order of member, view and example id.

        Raises:
            StaleArtefactError: If a part is missing, damaged or of another store.
        """
        asked = zip(self._axes, (member, view, shard), strict=True)
        places = product(*(axis if one is None else (one,) for axis, one in asked))
        for part in filter(None, map(self._by_place.get, places)):
            with _naming(self.folder):
                rows = read_part(self.folder, part, self.manifest)
            yield rows

    @cached_property
    def _by_place(self) -> dict[tuple[int, ...], Part]:
        # Gathering asks for every part by its place: a search through all would be quadratic.
        return {(part.member, part.view, part.shard): part for part in self.manifest.parts}

    @cached_property
    def _axes(self) -> tuple[range, ...]:
        """All members, views and shards."""
        return tuple(range(1 + max(axis)) for axis in zip(*self._by_place, strict=True))


def write_soft_targets(
    folder: Path,
    logits: Sequence[Sequence[NDArray[np.float32]]],
    example_ids: NDArray[np.int64],
    *,
    provenance: Provenance,
    encoding: Encoding | None = None,
    facts: Mapping[str, Any] | None = None,
    rows_per_part: int = ROWS_PER_PART,
) -> SoftTargets:
    """Write a whole store from memory; the folder appears whole or not at all.

    Args:
        folder: Where; a store there is replaced.
        logits: float32 [num_examples, num_classes] for each member and, within it, each view.
        example_ids: int64 [num_examples], ascending.
        provenance: What the logits were made from.
        encoding: Dense unless told.
        facts: What else is worth knowing; not compared with a run.
        rows_per_part: At most so many rows in a file.

    Raises:
        DataError: If a logit is not finite or too large for float16, or shapes do not fit.
        ParameterError: If the encoding cannot hold so many classes.
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
            view = logits[part.member][part.view][rows.start : rows.stop]
            ids = example_ids[rows.start : rows.stop]
            encoded = encode_logits(
                view, manifest.encoding, member=part.member, view=part.view, example_ids=ids
            )
            parts.append(write_part(temporary, part, manifest, ids, encoded))
        manifest = write_manifest(temporary, replace(manifest, parts=tuple(parts)))
    return SoftTargets(Path(folder), manifest)


def rows_within_budget(num_classes: int) -> int:
    """Rows of a part where nobody says: of the number of classes alone, so that bytes repeat.

    Args:
        num_classes: Of the store; top-k parts too are made from all logits.

    Returns:
        As many as keep float32 logits within `PART_MIB`, and at most `ROWS_PER_PART`.
    """
    rows = PART_MIB * 2**20 // (4 * num_classes)
    # In thousands where there are thousands: common batch sizes then divide a part.
    return min(ROWS_PER_PART, rows - rows % 1024 if rows >= 1024 else max(rows, 1))


def plan_store(
    example_ids: NDArray[np.int64],
    *,
    provenance: Provenance,
    encoding: Encoding,
    facts: Mapping[str, Any],
    rows_per_part: int,
) -> Manifest:
    """Say what a store will consist of, before its first row is known.

    Raises:
        DataError: If there is no example, or the ids do not ascend.
        ParameterError: If the encoding cannot hold so many classes.
    """
    encoding.check(len(provenance.class_names))
    if len(example_ids) == 0 or (np.diff(example_ids) <= 0).any():
        raise DataError("`example_ids` must be ascending and at least one")
    return Manifest(
        provenance=provenance,
        encoding=encoding,
        num_examples=len(example_ids),
        example_ids_digest=digest_of_ids(example_ids),
        rows_per_part=rows_per_part,
        facts=facts,
    )


def write_manifest(folder: Path, manifest: Manifest) -> Manifest:
    """Finish a store: its manifest appears whole or not at all. Gives it as it is read back."""
    with replace_file(folder / MANIFEST_FILE) as temporary:
        temporary.write_text(manifest.as_text(), encoding="utf-8")
    return Manifest.from_text(manifest.as_text())


def read_manifest(folder: Path) -> Manifest:
    """Read what a store was made from, without its rows.

    Raises:
        StaleArtefactError: If there is no manifest or it is not as it was written.
    """
    try:
        # Bytes, so that damage which is no text is refused like any other.
        return Manifest.from_text((folder / MANIFEST_FILE).read_bytes().decode())
    except FileNotFoundError as error:
        raise StaleArtefactError(
            f"no finished soft targets in {folder}: {MANIFEST_FILE} is missing; {_REMEDY}"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StaleArtefactError(
            f"no finished soft targets in {folder}: {MANIFEST_FILE} cannot be read, {error}; "
            f"{_REMEDY}"
        ) from error


def read_soft_targets(folder: Path) -> SoftTargets:
    """Open a store. Its parts are looked at here, and read and checked when they are needed.

    Raises:
        StaleArtefactError: If a part is missing, has another size, or does not belong there.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    problems = [problem for p in manifest.parts if (problem := part_problem(folder, p, manifest))]
    _refuse(folder, manifest, problems + _foreign_files(folder, manifest))
    return SoftTargets(folder, manifest)


def check_store(soft_targets: SoftTargets) -> None:
    """Read everything once.

    Raises:
        StaleArtefactError: Naming every damaged, missing and foreign part.
    """
    folder, manifest = soft_targets.folder, soft_targets.manifest
    problems = []
    shards: dict[int, NDArray[np.int64]] = {}
    for part in manifest.parts:
        try:
            rows = read_part(folder, part, manifest)
        except StaleArtefactError as error:
            problems.append(str(error))
            continue
        if not np.array_equal(shards.setdefault(part.shard, rows.example_ids), rows.example_ids):
            problems.append(f"{part.file} holds other examples than the first view does")
    _refuse(folder, manifest, problems + _foreign_files(folder, manifest))


def _foreign_files(folder: Path, manifest: Manifest) -> list[str]:
    """Files that the manifest does not know: a reader that globs would take them for parts."""
    known = {MANIFEST_FILE, *(part.file for part in manifest.parts)}
    names = sorted(path.name for path in folder.iterdir() if path.name not in known)
    return [f"{name} is no part of this store" for name in names if not name.startswith(".")]


def _refuse(folder: Path, manifest: Manifest, problems: Sequence[str]) -> None:
    if not problems:
        return
    if _is_of_another_run(folder, manifest):
        problems = [
            f"{MANIFEST_FILE} is of another run than the parts beside it",
            *problems,
        ]
    more = len(problems) - _NUM_SHOWN
    told = [*problems[:_NUM_SHOWN], *([f"and {more} more"] if more > 0 else [])]
    raise StaleArtefactError(f"`soft_targets` in {folder}: {'; '.join(told)}; {_REMEDY}")


def _is_of_another_run(folder: Path, manifest: Manifest) -> bool:
    """Whether no part says what the manifest says, and all parts that say anything agree."""
    paths = [folder / part.file for part in manifest.parts]
    heads = [head for path in paths if path.is_file() and (head := read_head(path))]
    wanted = manifest.head()
    origins = [{name: head.get(name) for name in wanted} for head in heads]
    return bool(origins) and origins[0] != wanted and all(o == origins[0] for o in origins)


_REMEDY = "cache them anew: kedro run --pipelines=soft_target_caching"


@contextmanager
def _naming(folder: Path) -> Iterator[None]:
    """Say of which store a part's problem is, and what to do about it."""
    try:
        yield
    except StaleArtefactError as error:
        raise StaleArtefactError(f"`soft_targets` in {folder}: {error}; {_REMEDY}") from error
