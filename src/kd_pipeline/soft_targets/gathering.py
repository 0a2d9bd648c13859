"""The soft targets of some examples, gathered part by part from a store."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kd_pipeline.errors import DataError, ParameterError
from kd_pipeline.memory import MemoryBudget, mapped_array
from kd_pipeline.soft_targets.encoding import FLOAT16_MAX
from kd_pipeline.soft_targets.ensemble import EnsembleAverage
from kd_pipeline.soft_targets.manifest import Manifest
from kd_pipeline.soft_targets.parts import PartRows
from kd_pipeline.soft_targets.settings import SoftTargetsParams
from kd_pipeline.soft_targets.store import SoftTargets
from kd_pipeline.teacher_logits import TeacherLogits


def gather_targets(
    soft_targets: SoftTargets,
    example_ids: NDArray[np.int64],
    params: SoftTargetsParams,
    *,
    temperature: float | None,
    budget: MemoryBudget,
) -> TeacherLogits[NDArray[Any]]:
    """Read the soft targets of examples, averaged over the members of an ensemble.

    The store is read part by part. A result that does not fit what is left of the budget is
    `np.memmap` of a scratch file.

    Args:
        soft_targets: The store.
        example_ids: int64 [n], in any order.
        params: How to average.
        temperature: At which the targets will be read; None where the loss has none. An
            arithmetic average is then taken at temperature 1.
        budget: Of the process.

    Returns:
        float16 [num_views, n, num_classes], or of the top k, in the order of `example_ids`.

    Raises:
        DataError: If an example has no soft target.
        ParameterError: If the weights do not fit the members, or a top-k store is asked for
            another temperature than its own or for an average.
        StaleArtefactError: If a part is missing, damaged or of another store.
    """
    manifest = soft_targets.manifest
    shares = params.shares(manifest.num_members)
    _check_encoding(manifest, temperature)
    num_views = manifest.provenance.num_views
    targets = allocate(manifest, (num_views, len(example_ids)), budget)
    order = np.argsort(example_ids)
    wanted = example_ids[order]
    for view in range(num_views):
        has_row = np.zeros(len(wanted), dtype=bool)
        for shard in range(manifest.num_shards):
            average = EnsembleAverage(params.ensemble_average, temperature=temperature or 1.0)
            members = soft_targets.parts(view=view, shard=shard)
            here, found, rows = _gather_shard(members, wanted, shares, average)
            has_row[here] = found
            put(rows, targets, (view, order[here]))
        if len(missing := wanted[~has_row]):
            raise DataError(
                f"`soft_targets` have no row for {len(missing)} examples, "
                f"first {missing[:3].tolist()}"
            )
    return targets


def _gather_shard(
    members: Iterable[PartRows],
    wanted: NDArray[np.int64],
    shares: tuple[float, ...],
    average: EnsembleAverage,
) -> tuple[slice, NDArray[np.bool_], TeacherLogits[NDArray[Any]]]:
    """Where a shard's range lies among the wanted ids, which of them it has, and their rows."""
    for part in members:
        start = int(np.searchsorted(wanted, part.example_ids[0]))
        stop = int(np.searchsorted(wanted, part.example_ids[-1], side="right"))
        at = np.searchsorted(part.example_ids, wanted[start:stop])
        has_row, rows = part.example_ids[at] == wanted[start:stop], part.rows[at]
        if len(shares) > 1:
            average.add(torch.from_numpy(rows.logits), shares[part.member])
    if len(shares) > 1:
        # An arithmetic average may hold the logits of a vanishing probability.
        averaged = average.logits().clamp(min=-FLOAT16_MAX)
        rows = TeacherLogits(averaged.numpy().astype(np.float16))
    return slice(start, stop), has_row, rows


def _check_encoding(manifest: Manifest, temperature: float | None) -> None:
    cached_at = manifest.encoding.temperature
    if cached_at is None:
        return
    if temperature is not None and temperature != cached_at:
        rule = f"be {cached_at:g}, which these top-k soft targets are tied to"
        raise ParameterError("temperature", rule, temperature)
    if manifest.num_members > 1:
        rule = "be null for a teacher of several members: a top-k cache cannot be averaged"
        raise ParameterError("soft_target_caching.top_k", rule, manifest.encoding.top_k)


def allocate(
    manifest: Manifest, shape: tuple[int, int], budget: MemoryBudget
) -> TeacherLogits[NDArray[Any]]:
    """Arrays for rows of a store, [*shape, ...], mapped from a file where they exceed a budget.

    All are in the same place.
    """
    top_k = manifest.encoding.top_k
    width = len(manifest.provenance.class_names) if top_k is None else top_k
    bytes_per_row = 2 * width if top_k is None else 4 * width + 2
    fits = budget.fits(shape[0] * shape[1] * bytes_per_row)
    make = budget.array if fits else mapped_array
    logits = make((*shape, width), np.float16)
    if top_k is None:
        return TeacherLogits(logits)
    return TeacherLogits(logits, make((*shape, width), np.uint16), make(shape, np.float16))


def put(
    rows: TeacherLogits[NDArray[Any]], targets: TeacherLogits[NDArray[Any]], index: Any
) -> None:
    """Write rows into larger arrays."""
    for name, values in vars(rows).items():
        if values is not None:
            getattr(targets, name)[index] = values
