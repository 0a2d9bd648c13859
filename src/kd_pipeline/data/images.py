"""Images as one uint8 array keyed by example id."""

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kd_pipeline.errors import DataError
from kd_pipeline.memory import MemoryBudget, fits_device

if TYPE_CHECKING:  # The pipelines' wiring imports ImageSet and should not pay for torch.
    from torch import Tensor

CHUNK_BYTES = 64 * 2**20
"""Pixels are copied to a GPU so many bytes at a time."""


class ImageSet:
    """Images of one size, by example id.

    Attributes:
        example_ids: int64 [num_images], strictly ascending.
        pixels: uint8 [num_images, channels, height, width], in memory or an np.memmap.
        class_names: Position in this tuple = label.
    """

    def __init__(
        self,
        example_ids: NDArray[np.int64],
        pixels: NDArray[np.uint8],
        class_names: tuple[str, ...],
        fingerprint: str = "",
    ) -> None:
        """Check the arrays; a `fingerprint` that was stored with them is not computed again.

        Raises:
            DataError: If a shape, a dtype or the order of the ids is not as described.
        """
        if pixels.dtype != np.uint8 or pixels.ndim != 4:
            raise DataError(
                "`pixels` must be uint8 of shape [images, channels, height, width], "
                f"got {pixels.dtype} {pixels.shape}"
            )
        if example_ids.dtype != np.int64 or example_ids.shape != (len(pixels),):
            raise DataError(
                f"`example_ids` must be int64 of shape ({len(pixels)},), "
                f"got {example_ids.dtype} {example_ids.shape}"
            )
        if np.any(example_ids[1:] <= example_ids[:-1]):
            raise DataError("`example_ids` must be strictly ascending, got equal or falling ids")
        if len(set(class_names)) != len(class_names):
            raise DataError(f"`class_names` must be unique, got {class_names}")
        self.example_ids, self.pixels, self.class_names = example_ids, pixels, class_names
        self._fingerprint = fingerprint

    @property
    def fingerprint(self) -> str:
        """SHA-256 over shape, class names, ids and pixels."""
        if not self._fingerprint:
            head = {"shape": self.pixels.shape, "class_names": self.class_names}
            digest = hashlib.sha256(json.dumps(head).encode())
            digest.update(np.ascontiguousarray(self.example_ids).data)
            for image in np.asarray(self.pixels):
                digest.update(np.ascontiguousarray(image).data)
            self._fingerprint = digest.hexdigest()
        return self._fingerprint

    def positions(self, example_ids: ArrayLike) -> NDArray[np.int64]:
        """Rows of `pixels`, int64 [n], of examples int64 [n], in their order; repeats are fine.

        Raises:
            DataError: If an id is not in this set.
        """
        ids = np.asarray(example_ids, dtype=np.int64)
        rows = np.searchsorted(self.example_ids, ids)
        found = rows < len(self.example_ids)
        found[found] = self.example_ids[rows[found]] == ids[found]
        if not found.all():
            missing = ids[~found]
            raise DataError(
                f"`example_ids` must be among the {len(self.example_ids)} images at hand, got "
                f"{len(missing)} unknown ones, first {missing[:3].tolist()}"
            )
        return rows.astype(np.int64, copy=False)

    def take(self, example_ids: ArrayLike) -> "Tensor":
        """Copy of the pixels of examples int64 [n], uint8 [n, channels, height, width]."""
        return self.take_rows(self.positions(example_ids))

    def batches(self, example_ids: NDArray[np.int64], size: int) -> Iterator["Tensor"]:
        """Copies of the pixels of examples int64 [n], up to `size` at a time, in their order."""
        return (self.take(example_ids[at : at + size]) for at in range(0, len(example_ids), size))

    def take_rows(self, rows: NDArray[np.int64]) -> "Tensor":
        """Copy of rows int64 [...] of `pixels`, uint8 [..., channels, height, width]."""
        import torch

        taken = np.empty((*rows.shape, *self.pixels.shape[1:]), dtype=np.uint8)
        # Without `clip` NumPy fills a second array of this size first.
        np.take(self.pixels, rows, axis=0, out=taken, mode="clip")
        return torch.from_numpy(taken)

    def reader(
        self, example_ids: ArrayLike, *, device: str, budget: MemoryBudget | None = None
    ) -> "ImagePixels":
        """Pixels of examples int64 [n], by position among them.

        Args:
            example_ids: int64 [n].
            device: Where batches are given.
            budget: Where all pixels fit what is left of it, they are copied to the device at once.
                None reads them batch by batch.
        """
        import torch

        rows = self.positions(example_ids)
        loaded = None if budget is None else self._loaded(rows, device, budget)
        ids = torch.from_numpy(self.example_ids[rows]).to(device)
        return ImagePixels(example_ids=ids, images=self, rows=rows, loaded=loaded)

    def _loaded(
        self, rows: NDArray[np.int64], device: str, budget: MemoryBudget
    ) -> "Tensor | None":
        """A copy of rows on the device; None where it does not fit."""
        import torch

        shape = (len(rows), *self.pixels.shape[1:])
        if device == "cpu":
            if not budget.fits(math.prod(shape)):
                return None
            taken = budget.array(shape, np.uint8)
            np.take(self.pixels, rows, axis=0, out=taken, mode="clip")
            return torch.from_numpy(taken)
        # The budget is the process's; a GPU has memory of its own.
        if not fits_device(device, math.prod(shape)):
            return None
        loaded = torch.empty(shape, dtype=torch.uint8, device=device)
        step = max(1, CHUNK_BYTES // math.prod(shape[1:]))
        for at in range(0, len(rows), step):
            loaded[at : at + step] = self.take_rows(rows[at : at + step])
        return loaded


@dataclass(frozen=True, eq=False)
class ImagePixels:
    """Pixels of some examples, by position among them; a `Pixels` of `kd_pipeline.views`.

    Attributes:
        example_ids: int64 [n], on the device where batches are given.
        images: The images read from.
        rows: int64 [n], rows of the examples in `images`.
        loaded: uint8 [n, channels, height, width] on the device; None = read batch by batch.
    """

    example_ids: "Tensor"
    images: ImageSet
    rows: NDArray[np.int64]
    loaded: "Tensor | None"

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width."""
        return self.images.pixels.shape[2], self.images.pixels.shape[3]

    def __call__(self, positions: "Tensor") -> "Tensor":
        """Pixels of these positions, uint8 [batch, channels, height, width], on the device."""
        if self.loaded is not None:
            # Ten times faster on a CPU than indexing.
            taken = self.loaded.index_select(0, positions.flatten())
            return taken.view(*positions.shape, *taken.shape[1:])
        rows = self.rows[positions.cpu().numpy()]
        return self.images.take_rows(rows).to(self.example_ids.device)
