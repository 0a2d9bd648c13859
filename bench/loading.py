"""Print what loading a cache and verifying pixels cost, as shares of the epoch that uses them."""

import math
import statistics
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench.timing import seconds
from bench.training import SETTINGS, Shape, speed
from kd_pipeline.checksums import file_checksum
from kd_pipeline.memory import MemoryBudget
from kd_pipeline.soft_targets.encoding import Encoding
from kd_pipeline.soft_targets.gathering import gather_targets
from kd_pipeline.soft_targets.manifest import Provenance
from kd_pipeline.soft_targets.settings import SoftTargetsParams
from kd_pipeline.soft_targets.store import check_store, read_soft_targets, write_soft_targets

NUM_EXAMPLES, VIEWS = 50_000, (1, 4)
CACHES = ((10, None), (100, None), (1000, 10))
"""Number of classes, and the top k that is kept."""


def main(rounds: int) -> dict[str, dict[str, float]]:
    """Measure every cache against an epoch of each larger student, print a table, return it."""
    print(f"{NUM_EXAMPLES:,} examples; checksums included. Every arm gathers once for all views,")
    print("and a run that trains from a cache that it did not make reads it once more before, to")
    print("refuse damage early (guard). The share is that of both in as many epochs as views: with")
    print("one view, and more epochs, it is paid in the first epoch only.\n")
    head = f"{'cache':20}{'views':>6}{'gather s':>10}{'guard s':>9}"
    print(head + "".join(f"{s.name[:26]:>28}" for s in SETTINGS[1:]))
    table = {}
    epochs = [NUM_EXAMPLES / speed(setting, rounds) for setting in SETTINGS[1:]]
    for num_classes, top_k in CACHES:
        for num_views in VIEWS:
            gather, guard = _loading(num_classes, top_k, num_views, rounds)
            name = f"{num_classes} classes" + ("" if top_k is None else f", top {top_k}")
            shares = [(gather + guard) / num_views / epoch for epoch in epochs]
            table[f"{name}, {num_views} views"] = {"gather": gather, "guard": guard}
            row = f"{name:20}{num_views:>6}{gather:>10.3f}{guard:>9.3f}"
            print(row + "".join(f"{share:>28.2%}" for share in shares))
    checksums = [_checksum(setting.shape, rounds) for setting in SETTINGS[1:]]
    rate = NUM_EXAMPLES * math.prod(SETTINGS[-1].shape) / checksums[-1] / 1e9
    shares = [checksum / epoch for checksum, epoch in zip(checksums, epochs, strict=True)]
    row = f"{'checksum of pixels':20}{'':6}{checksums[-1]:>10.3f}{'':9}"
    print(row + "".join(f"{share:>28.2%}" for share in shares))
    print(f"\nThat of the pixels is taken when a process first opens them, at {rate:.1f} GB/s; the")
    print("seconds are those of the last column, the share is of one epoch.")
    table["checksum of pixels"] = {"seconds": checksums[-1]}
    return table


def _loading(
    num_classes: int, top_k: int | None, num_views: int, rounds: int
) -> tuple[float, float]:
    """Median seconds from the folder to arrays in the order of the training rows; the guard's."""
    rng = np.random.default_rng(0)
    ids = np.sort(rng.choice(2**40, NUM_EXAMPLES, replace=False))
    shape = (NUM_EXAMPLES, num_classes)
    views = [rng.normal(0, 4, shape).astype(np.float32) for _ in range(num_views)]
    names = tuple(f"class {number}" for number in range(num_classes))
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder, "cache")
        write_soft_targets(
            cache,
            [views],
            ids,
            provenance=Provenance(names, ("t",), "images", "splits", {}, num_views),
            encoding=Encoding(top_k, None if top_k is None else 4.0),
        )
        del views
        gather = [seconds(lambda: _gather(cache, ids)) for _ in range(rounds)]
        guard = [seconds(lambda: check_store(read_soft_targets(cache))) for _ in range(rounds)]
    return statistics.median(gather), statistics.median(guard)


def _checksum(shape: Shape, rounds: int) -> float:
    """Median seconds for the checksum of all images of this shape."""
    pixels = np.random.default_rng(0).bytes(NUM_EXAMPLES * math.prod(shape))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "pixels.npy")
        file.write_bytes(pixels)
        return statistics.median(seconds(lambda: file_checksum(file)) for _ in range(rounds))


def _gather(folder: Path, ids: NDArray[np.int64]) -> None:
    cache, params = read_soft_targets(folder), SoftTargetsParams()
    gather_targets(cache, ids, params, temperature=None, budget=MemoryBudget(2**32))
