"""Room for pixels: in memory, or above a budget in a memory-mapped scratch file."""

from __future__ import annotations

import os
import tempfile
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

SCRATCH_PREFIX = "kd_pipeline_pixels_"
_BLOCK_ROWS_BYTES = 64 * 2**20


def allocate_pixels(shape: tuple[int, ...], *, memory_budget_mb: int) -> NDArray[np.uint8]:
    """Make an empty pixel array, on disk where it would exceed the budget.

    The scratch file is deleted with the array, unless it was moved away before.

    Args:
        shape: [num_images, channels, height, width].
        memory_budget_mb: Largest array that is kept in memory, in MiB.

    Returns:
        uint8 of that shape.
    """
    if int(np.prod(shape, dtype=np.int64)) <= memory_budget_mb * 2**20:
        return np.empty(shape, dtype=np.uint8)
    handle, name = tempfile.mkstemp(prefix=SCRATCH_PREFIX, suffix=".npy", dir=_scratch_folder())
    os.close(handle)
    pixels = np.lib.format.open_memmap(name, mode="w+", dtype=np.uint8, shape=shape)
    return _deleted_with(pixels, Path(name))


def keep_rows(pixels: NDArray[np.uint8], kept: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Drop the other rows in place: neither memory nor disk is asked for a second copy.

    Args:
        pixels: uint8 [num_images, ...]; overwritten, not to be used after.
        kept: bool [num_images].

    Returns:
        uint8 [kept.sum(), ...].
    """
    if kept.all():
        return pixels
    rows = np.flatnonzero(kept)
    block = max(1, _BLOCK_ROWS_BYTES // max(1, int(np.prod(pixels.shape[1:]))))
    for start in range(0, len(rows), block):
        # A row only ever moves forward, and the right side is copied before it is written.
        moved = pixels[rows[start : start + block]]
        pixels[start : start + len(moved)] = moved
    path = scratch_file(pixels)
    if path is None:
        return pixels[: len(rows)]
    return _shorten(cast("np.memmap[tuple[int, ...], np.dtype[np.uint8]]", pixels), path, len(rows))


def scratch_file(pixels: NDArray[np.uint8]) -> Path | None:
    """The scratch file that holds exactly this array, or None if there is none."""
    if not isinstance(pixels, np.memmap) or pixels.filename is None:
        return None
    path = Path(pixels.filename)
    if not path.name.startswith(SCRATCH_PREFIX) or not path.exists():
        return None
    whole = np.lib.format.open_memmap(path, mode="r")
    same = whole.shape == pixels.shape and whole.dtype == pixels.dtype
    return path if same and pixels.offset == whole.offset else None


def _shorten(
    pixels: np.memmap[tuple[int, ...], np.dtype[np.uint8]], path: Path, num_rows: int
) -> NDArray[np.uint8]:
    shape = (num_rows, *pixels.shape[1:])
    pixels.flush()
    with path.open("r+b") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        # NumPy pads the header so that the first axis may change without moving the data.
        np.lib.format.write_array_header_1_0(file, header)
        if file.tell() != pixels.offset:
            raise OSError(f"{path}: the header changed its length, the file is unusable")
        file.truncate(pixels.offset + int(np.prod(shape, dtype=np.int64)))
    shorter = np.lib.format.open_memmap(path, mode="r+")
    _finalizers.pop(path).detach()
    return _deleted_with(shorter, path)


_finalizers: dict[Path, weakref.finalize] = {}  # type: ignore[type-arg]


def _deleted_with(pixels: NDArray[np.uint8], path: Path) -> NDArray[np.uint8]:
    _finalizers[path] = weakref.finalize(pixels, _delete, path)
    return pixels


def _delete(path: Path) -> None:
    _finalizers.pop(path, None)
    path.unlink(missing_ok=True)


def _scratch_folder() -> str:
    # /tmp is often memory under another name; /var/tmp is meant for what is large.
    roomy = "/var/tmp"  # noqa: S108 - mkstemp makes the name
    if "TMPDIR" not in os.environ and os.access(roomy, os.W_OK):
        return roomy
    return tempfile.gettempdir()
