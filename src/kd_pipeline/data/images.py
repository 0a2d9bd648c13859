"""Images as one uint8 array keyed by example id, in memory or memory-mapped."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from kd_pipeline.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray
    from torch import Tensor

_BLOCK_BYTES = 64 * 2**20


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images of one size, found by example id.

    Attributes:
        example_ids: int64 [num_images], strictly ascending.
        pixels: uint8 [num_images, channels, height, width], in memory or an np.memmap.
        class_names: Position in this tuple = label.
    """

    example_ids: NDArray[np.int64]
    pixels: NDArray[np.uint8]
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        """Check shapes, dtypes and the order of the ids.

        Raises:
            DataError: If one of them is not as the class promises.
        """
        ids, pixels = self.example_ids, self.pixels
        if pixels.dtype != np.uint8 or pixels.ndim != 4:
            raise DataError(
                "`pixels` must be uint8 of shape [images, channels, height, width], "
                f"got {pixels.dtype} {pixels.shape}"
            )
        if ids.dtype != np.int64 or ids.shape != (len(pixels),):
            raise DataError(
                f"`example_ids` must be int64 of shape ({len(pixels)},), "
                f"got {ids.dtype} {ids.shape}"
            )
        if np.any(ids[1:] <= ids[:-1]):
            raise DataError("`example_ids` must be strictly ascending, got equal or falling ids")
        if len(set(self.class_names)) != len(self.class_names):
            raise DataError(f"`class_names` must be unique, got {self.class_names}")

    def positions(self, example_ids: ArrayLike) -> NDArray[np.int64]:
        """Rows of `pixels` that hold these examples, in the order asked.

        Args:
            example_ids: int64 [n]; repeats are fine.

        Returns:
            int64 [n].

        Raises:
            DataError: If an id is not in this set.
        """
        wanted = np.asarray(example_ids, dtype=np.int64)
        rows = np.searchsorted(self.example_ids, wanted)
        inside = rows < len(self.example_ids)
        known = np.zeros(wanted.shape, dtype=bool)
        known[inside] = self.example_ids[rows[inside]] == wanted[inside]
        if not known.all():
            missing = wanted[~known]
            raise DataError(
                f"`example_ids` must be among the {len(self.example_ids)} images at hand, got "
                f"{len(missing)} unknown ones, first {missing[:3].tolist()}"
            )
        return rows.astype(np.int64, copy=False)

    def take(self, example_ids: ArrayLike) -> Tensor:
        """Copy the pixels of these examples.

        Args:
            example_ids: int64 [n].

        Returns:
            uint8 [n, channels, height, width] in its own memory.
        """
        # Imported here: the pipelines' wiring names ImageSet and should not pay for torch.
        import torch

        taken = np.empty((len(np.asarray(example_ids)), *self.pixels.shape[1:]), dtype=np.uint8)
        np.take(self.pixels, self.positions(example_ids), axis=0, out=taken, mode="clip")
        return torch.from_numpy(taken)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over shape, class names, ids and pixels, read block by block."""
        head = {"shape": self.pixels.shape, "class_names": self.class_names}
        digest = hashlib.sha256(json.dumps(head).encode())
        digest.update(np.ascontiguousarray(self.example_ids).data)
        image_bytes = max(1, int(np.prod(self.pixels.shape[1:])))
        block = max(1, _BLOCK_BYTES // image_bytes)
        for start in range(0, len(self.pixels), block):
            digest.update(np.ascontiguousarray(self.pixels[start : start + block]).data)
        return digest.hexdigest()
