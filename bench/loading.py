"""Print what loading a cache costs, as a share of the epoch that uses what is loaded."""

import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from bench.training import SETTINGS, speed
from kd_pipeline.soft_targets.encoding import Encoding
from kd_pipeline.soft_targets.gathering import gather_targets
from kd_pipeline.soft_targets.manifest import Provenance
from kd_pipeline.soft_targets.mixing import Mixing
from kd_pipeline.soft_targets.store import read_soft_targets, write_soft_targets

NUM_EXAMPLES, NUM_VIEWS = 50_000, 4
CACHES = ((10, None), (100, None), (1000, 10))
"""Number of classes, and the top k that is kept."""


def main(rounds: int) -> None:
    """Measure every cache against one epoch of each larger student, and print a table."""
    print(f"{NUM_EXAMPLES:,} examples, {NUM_VIEWS} views; checksums included. Loading is paid once")
    print("for all views; the share is that of one view, in the epoch that shows it.\n")
    print(f"{'cache':28}{'seconds':>9}" + "".join(f"{s.name[:26]:>28}" for s in SETTINGS[1:]))
    epochs = [NUM_EXAMPLES / speed(setting, rounds) for setting in SETTINGS[1:]]
    for num_classes, top_k in CACHES:
        seconds = _loading(num_classes, top_k, rounds)
        name = f"{num_classes} classes" + ("" if top_k is None else f", top {top_k}")
        shares = "".join(f"{seconds / NUM_VIEWS / epoch:>28.2%}" for epoch in epochs)
        print(f"{name:28}{seconds:>9.3f}{shares}")


def _loading(num_classes: int, top_k: int | None, rounds: int) -> float:
    """Median seconds from the folder to arrays in the order of the training rows."""
    rng = np.random.default_rng(0)
    ids = np.sort(rng.choice(2**40, NUM_EXAMPLES, replace=False))
    views = [
        rng.normal(0, 4, (NUM_EXAMPLES, num_classes)).astype(np.float32) for _ in range(NUM_VIEWS)
    ]
    names = tuple(f"class {number}" for number in range(num_classes))
    with tempfile.TemporaryDirectory() as folder:
        write_soft_targets(
            Path(folder, "cache"),
            [views],
            ids,
            provenance=Provenance(names, ("t",), "images", "splits", {}, NUM_VIEWS),
            encoding=Encoding(top_k, None if top_k is None else 4.0),
        )
        del views
        return statistics.median(_once(Path(folder, "cache"), ids) for _ in range(rounds))


def _once(folder: Path, ids: np.ndarray) -> float:
    started = time.perf_counter()
    gather_targets(
        read_soft_targets(folder),
        ids,
        mixing=Mixing(),
        temperature=None,
        memory_budget_bytes=2**32,
    )
    return time.perf_counter() - started
