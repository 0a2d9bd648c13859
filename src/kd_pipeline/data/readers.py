"""Readers: open the image of a key, whatever it is kept in."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class ArrayReader:
    """Images of an array, for when they must be resized or change colour.

    Attributes:
        pixels: uint8 [num_images, 1 or 3, height, width].
    """

    pixels: NDArray[np.uint8]

    def __call__(self, position: int) -> Image.Image:
        """Wrap one image for Pillow."""
        image = self.pixels[position]
        return Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0))


@dataclass(frozen=True)
class FileReader:
    """Image files under one folder.

    Attributes:
        root: The folder; a key is a path relative to it.
    """

    root: str

    def __call__(self, key: str) -> Image.Image:
        """Read one file and its header; Pillow decodes it later."""
        # In one go: Pillow reads small files in several steps, each giving up Python's lock.
        # os.path, for a Path costs a fifth of decoding a small image.
        with open(os.path.join(self.root, key), "rb") as file:  # noqa: PTH118, PTH123
            content = file.read()
        if not content:
            raise OSError("the file is empty")
        return Image.open(io.BytesIO(content))
