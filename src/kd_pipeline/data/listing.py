"""What a source knows of its images before any of them is decoded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from kd_pipeline.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image

    Reader = Callable[[Any], Image.Image]

_NUM_SHOWN = 5


@dataclass(frozen=True, eq=False)
class ImageListing:
    """All images of a source, in ascending order of example id.

    Attributes:
        example_ids: int64 [num_images], strictly ascending.
        sources: Where each image comes from, for people.
        labels: int64 [num_images]; -1 = none. A reader may fill them in while it reads.
        partitions: str [num_images]: train, test, or pool where the source has no test set.
        class_names: Position = label; empty where only the labels tell.
        keys: What the reader knows each image by.
        reader: Opens the image of a key, undecoded; picklable where `by_processes`.
        by_processes: Whether other processes may do the reading.
        decoded: uint8 [num_images, channels, height, width] where nothing needs decoding.
    """

    example_ids: NDArray[np.int64]
    sources: list[str]
    labels: NDArray[np.int64]
    partitions: NDArray[np.str_]
    class_names: tuple[str, ...]
    keys: Sequence[str] | Sequence[int]
    reader: Reader
    by_processes: bool = False
    decoded: NDArray[np.uint8] | None = None


def check_classes(
    labels: NDArray[np.int64], partitions: NDArray[np.str_], class_names: tuple[str, ...]
) -> None:
    """Refuse what no classifier can be trained and tested on.

    Args:
        labels: int64 [num_images]; -1 = none.
        partitions: str [num_images].
        class_names: Position = label.

    Raises:
        DataError: If there is one class only, a class of the test set that is not in the
            training images, or a class without images.
    """
    if len(class_names) < 2:
        raise DataError(f"the images must be of at least 2 classes, got {list(class_names)}")
    to_test = partitions == "test"
    train = set(labels[~to_test & (labels >= 0)].tolist())
    test = set(labels[to_test & (labels >= 0)].tolist())
    if test - train:
        raise DataError(
            "every class of the test set must be in the training images, got more classes in "
            f"test than in train: {_named(test - train, class_names)}"
        )
    empty = set(range(len(class_names))) - train
    if empty:
        raise DataError(
            f"every class must have a readable image, got none for {_named(empty, class_names)}"
        )


def first_few(lines: list[str]) -> str:
    """Join the first few lines and say how many more there are."""
    more = len(lines) - _NUM_SHOWN
    return "; ".join(lines[:_NUM_SHOWN]) + (f"; and {more} more" if more > 0 else "")


def _named(labels: set[int], class_names: tuple[str, ...]) -> str:
    return first_few([class_names[label] for label in sorted(labels)])
