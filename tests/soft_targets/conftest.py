"""A small store of two members and two views in several parts, and logits to compare it with."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from kd_pipeline.soft_targets.manifest import Provenance
from kd_pipeline.soft_targets.store import SoftTargets, write_soft_targets

IDS = np.array([3, 10, 77, 2**40, 2**62], dtype=np.int64)
PROVENANCE = Provenance(
    class_names=("a", "b", "c", "d"),
    teacher_fingerprints=("t0", "t1"),
    images_fingerprint="i",
    splits_fingerprint="s",
    view_policy={"seed": 0, "transforms": [{"name": "shift", "max_pixels": 2}]},
    num_views=2,
)


def some_logits(seed: int = 0, shape: tuple[int, ...] = (2, 2, 5, 4)) -> NDArray[np.float32]:
    """[members, views, examples, classes]"""
    return (np.random.default_rng(seed).normal(size=shape) * 5).astype(np.float32)


@pytest.fixture(scope="session")
def logits() -> NDArray[np.float32]:
    return some_logits()


@pytest.fixture
def store(tmp_path: Path) -> SoftTargets:
    return write(tmp_path / "store")


def write(folder: Path, *, seed: int = 0, **changes: Any) -> SoftTargets:
    """Shards of 2, 2 and 1 examples: 12 parts."""
    provenance = Provenance(**(vars(PROVENANCE) | changes))
    return write_soft_targets(
        folder, some_logits(seed), IDS, provenance=provenance, rows_per_part=2
    )


@pytest.fixture(scope="session")
def write_store() -> Any:
    """The function `write`, for tests that need another store."""
    return write
