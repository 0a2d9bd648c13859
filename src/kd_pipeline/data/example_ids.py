"""Example ids that are hashes of paths: unchanged when files are added, removed or moved as one."""

import hashlib
import os
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from kd_pipeline.errors import DataError

ID_BITS = 36
SHARD_BITS = ROW_BITS = 24
"""An image in a shard has both: 48 bits, which a spreadsheet's and JavaScript's numbers hold."""


def example_id_of_path(path: str, *, attempt: int = 0, bits: int = ID_BITS) -> int:
    """Hash a relative POSIX path to an id in [0, 2**bits), another one with each attempt.

    36 bits and not 63: sorted ids of n images cost about 39 - log2(n) bits each in every view of
    a soft-target cache, of 50,000 images 2.9 bytes instead of 6.3, beside 18 bytes of logits of
    ten classes (bench.cache_size).
    """
    text = os.fsencode(path) + (b"\0%d" % attempt if attempt else b"")  # No path holds a NUL.
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> (64 - bits)


def example_ids_of_paths(paths: Sequence[str], *, bits: int = ID_BITS) -> NDArray[np.int64]:
    """Unique ids of paths, int64 [num_paths]: of paths with one hash, the first in order keeps it.

    Of 370,000 files one pair is expected to have one hash of 36 bits.
    """
    ids = np.array([example_id_of_path(path, bits=bits) for path in paths], dtype=np.int64)
    taken = set(ids.tolist())
    # In the paths' own order, so that the order in which a folder is walked does not matter.
    seen: set[int] = set()
    for position in sorted(range(len(paths)), key=paths.__getitem__):
        attempt = 0
        while ids[position] in seen or (attempt and ids[position] in taken):
            attempt += 1
            ids[position] = example_id_of_path(paths[position], attempt=attempt, bits=bits)
        seen.add(int(ids[position]))
    return ids


def example_ids_of_shards(
    paths: Sequence[str], num_images: Sequence[int]
) -> list[NDArray[np.int64]]:
    """Unique ids of the images in each shard: a hash of its path, then the image's position.

    They ascend within a shard, so that images in the order of their ids are read one shard after
    the other, from its beginning to its end.

    Args:
        paths: Of the shards, relative, POSIX.
        num_images: In each of them.

    Returns:
        int64 [num_images] for each shard.

    Raises:
        DataError: If a shard holds more images than 24 bits can number.
    """
    for path, number in zip(paths, num_images, strict=True):
        if number > 2**ROW_BITS:
            raise DataError(f"a shard must hold at most {2**ROW_BITS:,} images, got {path}")
    starts = example_ids_of_paths(paths, bits=SHARD_BITS) << ROW_BITS
    return [
        start + np.arange(number, dtype=np.int64)
        for start, number in zip(starts, num_images, strict=True)
    ]
