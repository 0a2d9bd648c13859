"""Memory for pixels: an array, or above the memory budget a memory-mapped scratch file."""

import math
import mmap
import os
import tempfile
import weakref
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kd_pipeline.memory import MemoryBudget, scratch_folder

SCRATCH_PREFIX = "kd_pipeline_pixels_"


def allocate_pixels(shape: tuple[int, ...], budget: MemoryBudget) -> NDArray[np.uint8]:
    """Empty uint8 array, above the budget in a scratch file that is deleted with the array.

    The file has a name, so that it can be moved to where the images are kept.

    Raises:
        DataError: If the disk of the scratch file has not as many bytes free.
    """
    num_bytes = math.prod(shape)
    if budget.fits(num_bytes):
        return budget.array(shape, np.uint8)
    what = f"{shape[0]:,} images of `data_ingest.image_size` {shape[-1]}"
    folder = scratch_folder(num_bytes, what=what)
    handle, name = tempfile.mkstemp(prefix=SCRATCH_PREFIX, suffix=".npy", dir=folder)
    os.close(handle)
    pixels = np.lib.format.open_memmap(name, mode="w+", dtype=np.uint8, shape=shape)
    weakref.finalize(pixels, Path(name).unlink, missing_ok=True)
    return pixels


def keep_rows(pixels: NDArray[np.uint8], kept: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Move the kept rows to the front, without a second copy, and return the view of them.

    Args:
        pixels: uint8 [num_images, ...]; overwritten, not to be used after.
        kept: bool [num_images].
    """
    if kept.all():
        return pixels
    for position, row in enumerate(np.flatnonzero(kept)):
        pixels[position] = pixels[row]
    return pixels[: kept.sum()]


def scratch_file(pixels: NDArray[np.uint8]) -> Path | None:
    """The scratch file that holds exactly this array, or None if there is none."""
    # A view of a memory-mapped array has that array as its base.
    if not isinstance(pixels, np.memmap) or not isinstance(pixels.base, mmap.mmap):
        return None
    path = Path(str(pixels.filename))
    return path if path.name.startswith(SCRATCH_PREFIX) and path.exists() else None
