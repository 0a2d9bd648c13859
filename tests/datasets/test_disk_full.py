"""A disk that is full in the middle of a write leaves nothing half-written that is believed.

The limit on the size of files makes the operating system refuse the rest of a write, whoever
writes: Python, Arrow or safetensors.
"""

import resource
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from kedro.io import DatasetError

from kd_pipeline.errors import StaleArtefactError

KINDS = ["images", "checkpoints", "table.parquet", "metrics.csv", "card.json", "states", "cache"]


@contextmanager
def files_no_longer_than(num_bytes: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def sizes(folder: Path) -> set[int]:
    return {file.stat().st_size for file in folder.rglob("*") if file.is_file()}


def read(kind: Any, path: Path) -> Any:
    try:
        return kind.read(path)
    except (DatasetError, StaleArtefactError):
        return None


@pytest.mark.parametrize("name", KINDS)
def test_a_write_that_fails_leaves_the_old_artefact_or_none(
    name: str, kinds: dict[str, Any], tmp_path: Path
) -> None:
    kind, old, new = kinds[name], tmp_path / "old" / name, tmp_path / "new" / name
    kind.save(new, 2)
    whole = kind.read(new)
    failed = 0
    for limit in sorted(
        {0, *(size // 2 for size in sizes(new.parent)), max(sizes(new.parent)) - 1}
    ):
        kind.save(old, 1)
        before = kind.read(old)
        try:
            with files_no_longer_than(limit):
                kind.save(old, 2)
        except Exception:  # Each library raises its own; what counts is what is left.
            failed += 1
        assert read(kind, old) in (before, whole, None), f"believed by half at {limit} bytes"
        first = tmp_path / str(limit) / name
        with suppress(Exception), files_no_longer_than(limit):
            kind.save(first, 2)
        assert read(kind, first) in (whole, None), f"believed by half at {limit} bytes"
    assert failed >= 2
    kind.save(old, 2)
    assert kind.read(old) == whole
