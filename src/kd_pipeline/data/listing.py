"""The images of a source, listed before any of them is decoded."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kd_pipeline.errors import DataError

Reader = Callable[[Any], Image.Image]


@dataclass(frozen=True, eq=False)
class ImageListing:
    """All images of a source, in ascending order of example id.

    Attributes:
        example_ids: int64 [num_images], strictly ascending.
        sources: Where each image comes from, as text.
        labels: int64 [num_images]; -1 = none, or filled in by the reader while images are read.
        partitions: str [num_images]: train, test, or pool where the source has no test set.
        class_names: Position = label; empty where classes have numbers only.
        keys: The reader's arguments, one per image.
        reader: Opens the image of a key, undecoded; picklable where `by_processes`.
        by_processes: Whether other processes may read.
        decoded: uint8 [num_images, channels, height, width] where nothing needs decoding.
    """

    example_ids: NDArray[np.int64]
    sources: list[str]
    labels: NDArray[np.int64]
    partitions: NDArray[np.str_]
    class_names: tuple[str, ...]
    keys: Sequence[Any]
    reader: Reader
    by_processes: bool = False
    decoded: NDArray[np.uint8] | None = None


@dataclass(frozen=True, eq=False)
class ArrayReader:
    """Reader of images in an array, for when they must be resized or change colour."""

    pixels: NDArray[np.uint8]
    """[num_images, 1 or 3, height, width]"""

    def __call__(self, position: int) -> Image.Image:
        """Wrap the image at this position for Pillow."""
        image = self.pixels[position]
        return Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0))


def check_classes(
    labels: NDArray[np.int64], partitions: NDArray[np.str_], class_names: tuple[str, ...]
) -> None:
    """Refuse images that no classifier can be trained and tested on.

    Args:
        labels: int64 [num_images]; -1 = none.
        partitions: str [num_images].
        class_names: Position = label.

    Raises:
        DataError: If there is one class only, a class without training images, or a label
            beyond the classes.
    """
    if len(class_names) < 2:
        raise DataError(f"the images must be of at least 2 classes, got {list(class_names)}")
    if (beyond := int(labels.max(initial=-1))) >= len(class_names):
        raise DataError(f"labels must be below the {len(class_names)} classes, got {beyond}")
    in_test, labelled = partitions == "test", labels >= 0
    train = set(labels[~in_test & labelled].tolist())
    test = set(labels[in_test & labelled].tolist())
    if test - train:
        raise DataError(
            "every class of the test set must be in the training images, got more classes in "
            f"test than in train: {_named(test - train, class_names)}"
        )
    if empty := set(range(len(class_names))) - train:
        raise DataError(
            f"every class must have a readable image, got none for {_named(empty, class_names)}"
        )


def first_few(lines: list[str]) -> str:
    """The first five lines, joined, and how many more there are."""
    more = [f"and {len(lines) - 5} more"] if len(lines) > 5 else []
    return "; ".join(lines[:5] + more)


def printable(name: str) -> str:
    """A name as text that parquet can hold: bytes that are no text are written as escapes."""
    return name.encode("utf-8", "backslashreplace").decode()


def _named(labels: set[int], class_names: tuple[str, ...]) -> str:
    return first_few([class_names[label] for label in sorted(labels)])
