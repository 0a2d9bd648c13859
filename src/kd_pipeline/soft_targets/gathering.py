"""The soft targets of some examples, gathered part by part from a store."""

import os
import tempfile
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kd_pipeline.errors import DataError, ParameterError, StaleArtefactError
from kd_pipeline.soft_targets.encoding import FLOAT16_MAX
from kd_pipeline.soft_targets.ensemble import Mixing, Mixture
from kd_pipeline.soft_targets.manifest import Manifest, digest_of_ids
from kd_pipeline.soft_targets.parts import PartRows
from kd_pipeline.soft_targets.store import SoftTargets


@dataclass(frozen=True)
class GatheredTargets:
    """One teacher's soft targets of n examples, in the order in which they were asked for."""

    logits: NDArray[np.float16]
    """[num_views, n, num_classes], or [num_views, n, k] of a top-k store."""
    class_ids: NDArray[np.uint16] | None
    """[num_views, n, k] of a top-k store."""
    tail_logits: NDArray[np.float16] | None
    """[num_views, n] of a top-k store."""
    num_classes: int


def gather_targets(
    soft_targets: SoftTargets,
    example_ids: NDArray[np.int64],
    *,
    mixing: Mixing,
    temperature: float | None,
    memory_budget_bytes: int,
) -> GatheredTargets:
    """Read the soft targets of examples, with an ensemble's members mixed into one teacher.

    The store is read part by part. What would exceed the budget lies in an unlinked temporary
    file that is mapped into memory, and the arrays are `np.memmap`.

    Args:
        soft_targets: The store.
        example_ids: int64 [n], in any order.
        mixing: How several members become one teacher.
        temperature: At which the targets will be read; None where the loss has none. An
            arithmetic mixture is then taken at temperature 1.
        memory_budget_bytes: Largest result that is kept in memory.

    Raises:
        DataError: If an example has no soft target.
        ParameterError: If the mixing does not fit the members, or a top-k store is asked for
            another temperature than its own or for a mixture.
        StaleArtefactError: If a part is missing, damaged or of another store.
    """
    manifest = soft_targets.manifest
    shares = mixing.shares(manifest.num_members)
    _check_encoding(manifest, temperature)
    targets = _allocate(manifest, len(example_ids), memory_budget_bytes)
    order = np.argsort(example_ids, kind="stable")
    reader = _Reader(soft_targets, example_ids[order], shares, mixing.kind, temperature)
    for part in manifest.layout():
        if part.member > 0:
            break
        if part.view == 1 and part.shard == 0:
            reader.refuse_missing()
        rows = reader.mixed_rows(part.view, part.shard)
        for stored, values in zip(targets, rows.values, strict=True):
            if stored is not None:
                stored[part.view, order[rows.found]] = values
    reader.refuse_missing()
    return GatheredTargets(*targets, num_classes=len(manifest.provenance.class_names))


@dataclass(frozen=True)
class _Rows:
    found: slice
    """Which of the wanted examples, in ascending order, these rows are of."""
    values: tuple[NDArray[Any] | None, ...]
    """Logits, class ids and tail logits."""


@dataclass
class _Reader:
    """Reads parts, and checks on the way which examples they hold: nothing is read twice."""

    soft_targets: SoftTargets
    wanted: NDArray[np.int64]
    """[n], ascending."""
    shares: tuple[float, ...]
    kind: str
    temperature: float | None
    _digests: dict[int, str] = field(default_factory=dict)
    """Of the ids in each shard of the first member's first view."""

    def __post_init__(self) -> None:
        self._has_row = np.zeros(len(self.wanted), dtype=bool)

    def mixed_rows(self, view: int, shard: int) -> _Rows:
        """Read one shard of one view from every member, one after another."""
        mixture = Mixture(self.kind, temperature=self.temperature or 1.0)
        found = slice(0, 0)
        for member in self.soft_targets.parts(view=view, shard=shard):
            found, rows = self._find(member, shard)
            if len(self.shares) == 1:
                columns = (member.logits, member.class_ids, member.tail_logits)
                return _Rows(found, tuple(None if c is None else c[rows] for c in columns))
            mixture.add(torch.from_numpy(member.logits[rows]), self.shares[member.member])
        # An arithmetic mixture may hold the logits of a vanishing probability: none is below this.
        mixed = mixture.logits().clamp(-FLOAT16_MAX, FLOAT16_MAX).numpy().astype(np.float16)
        return _Rows(found, (mixed, None, None))

    def _find(self, part: PartRows, shard: int) -> tuple[slice, NDArray[np.int64]]:
        """Which of the wanted ids lie in a part's range, and the rows that they have there."""
        digest = digest_of_ids(part.example_ids)
        if self._digests.setdefault(shard, digest) != digest:
            raise StaleArtefactError(
                f"`soft_targets` in {self.soft_targets.folder}: member {part.member}, view "
                f"{part.view}, shard {shard} holds other examples than the first view does; "
                "cache them anew: kedro run --pipelines=soft_target_caching"
            )
        bounds = part.example_ids[[0, -1]]
        start = int(np.searchsorted(self.wanted, bounds[0], side="left"))
        stop = int(np.searchsorted(self.wanted, bounds[1], side="right"))
        rows = np.searchsorted(part.example_ids, self.wanted[start:stop])
        self._has_row[start:stop] = part.example_ids[rows] == self.wanted[start:stop]
        return slice(start, stop), rows

    def refuse_missing(self) -> None:
        """Once a whole view was read: whether every wanted example has a row in it."""
        missing = self.wanted[~self._has_row]
        if len(missing):
            raise DataError(
                f"`soft_targets` have no row for {len(missing)} examples, "
                f"first {missing[:3].tolist()}"
            )


def _check_encoding(manifest: Manifest, temperature: float | None) -> None:
    cached_at = manifest.encoding.temperature
    if cached_at is None:
        return
    if temperature is not None and temperature != cached_at:
        rule = f"be {cached_at:g}, which these top-k soft targets are tied to"
        raise ParameterError("temperature", rule, temperature)
    if manifest.num_members > 1:
        rule = "be null for a teacher of several members: a top-k cache cannot be mixed"
        raise ParameterError("soft_target_caching.top_k", rule, manifest.encoding.top_k)


def _allocate(
    manifest: Manifest, count: int, budget_bytes: int
) -> tuple[NDArray[Any], NDArray[Any] | None, NDArray[Any] | None]:
    """Arrays for logits, class ids and tails, [num_views, count, ...], together on disk or not."""
    num_views, top_k = manifest.provenance.num_views, manifest.encoding.top_k
    width = len(manifest.provenance.class_names) if top_k is None else top_k
    bytes_per_row = 2 * width if top_k is None else 4 * width + 2
    on_disk = num_views * count * bytes_per_row > budget_bytes
    make = _allocate_on_disk if on_disk else np.empty
    logits = make((num_views, count, width), np.float16)
    if top_k is None:
        return logits, None, None
    return logits, make((num_views, count, width), np.uint16), make((num_views, count), np.float16)


def _allocate_on_disk(shape: tuple[int, ...], dtype: type) -> NDArray[Any]:
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    with tempfile.TemporaryFile(prefix="kd_pipeline_soft_targets_", dir=_scratch_folder()) as file:
        if hasattr(os, "posix_fallocate"):
            # A full disk is an error here, and would be a crash once the pages are written.
            os.posix_fallocate(file.fileno(), 0, size)
        return np.memmap(file, mode="w+", dtype=dtype, shape=shape)


def _scratch_folder() -> str:
    # /tmp is often memory under another name; /var/tmp is meant for what is large.
    roomy = "/var/tmp"  # noqa: S108 - the file has no name there
    if "TMPDIR" not in os.environ and os.access(roomy, os.W_OK):
        return roomy
    return tempfile.gettempdir()
