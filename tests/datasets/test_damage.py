"""No damaged artefact is believed: it is refused by name, or what is read of it is the same."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kedro.io import DatasetError

from kd_pipeline.errors import StaleArtefactError, our_cause

KINDS = ["images", "checkpoints", "table.parquet", "metrics.csv", "card.json", "states", "cache"]
NUM_DAMAGES = 30


def damages(content: bytes, generator: np.random.Generator, count: int) -> Iterator[bytes]:
    """The file emptied, cut, overwritten in part, and with single bits flipped."""
    yield b""
    for _ in range(count // 6):
        yield content[: generator.integers(len(content))]
        start = int(generator.integers(len(content)))
        written = generator.bytes(min(16, len(content) - start))
        yield content[:start] + written + content[start + len(written) :]
    for _ in range(count - 2 * (count // 6) - 1):
        flipped = bytearray(content)
        flipped[generator.integers(len(content))] ^= 1 << generator.integers(8)
        yield bytes(flipped)


def count_refused(kind: Any, path: Path, file: Path, damaged: Iterator[bytes], log: Any) -> int:
    """Read an artefact with one of its files damaged, and count how often that was refused."""
    content, whole, refused = file.read_bytes(), kind.read(path), 0
    for number, data in enumerate(damaged):
        file.write_bytes(data)
        os.utime(file, ns=(number, number))  # Two writes may fall into one tick of the clock.
        log.clear()
        try:
            found = kind.read(path)
        except (DatasetError, StaleArtefactError) as error:
            found, message = None, str(our_cause(error))
        else:
            message = log.text
        if found is None:
            assert str(path) in message, f"{file.name}: {data!r} is refused without its name"
            refused += 1
        else:
            assert found == whole, f"{file.name}: {data!r} is believed"
    file.write_bytes(content)
    assert kind.read(path) == whole
    return refused


@pytest.mark.parametrize("name", KINDS)
def test_a_damaged_file_is_refused_or_harmless(
    name: str, kinds: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kind, path, generator = kinds[name], tmp_path / name, np.random.default_rng(0)
    kind.save(path, 1)
    files = sorted(file for file in tmp_path.rglob("*") if file.is_file())
    assert files
    with caplog.at_level(logging.WARNING):
        for file in files:
            tried = damages(file.read_bytes(), generator, NUM_DAMAGES)
            refused = count_refused(kind, path, file, tried, caplog)
            assert refused > NUM_DAMAGES / 2, f"{file}: of {NUM_DAMAGES} only {refused} refused"
