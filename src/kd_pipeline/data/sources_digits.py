"""scikit-learn's packaged digits: nothing to download."""

import numpy as np

from kd_pipeline.data.listing import ArrayReader, ImageListing
from kd_pipeline.data.settings import DigitsSource


def list_digits(source: DigitsSource) -> ImageListing:  # noqa: ARG001 - it has no settings
    """List the 1,797 grey images of 8 by 8 pixels; example_id = position.

    Their values 0 to 16 are scaled to 0 to 255; there is no test set of their own.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)[:, None]
    num_images = len(pixels)
    return ImageListing(
        example_ids=np.arange(num_images, dtype=np.int64),
        sources=[f"digits/{position}" for position in range(num_images)],
        labels=digits.target.astype(np.int64),
        partitions=np.full(num_images, "pool"),
        class_names=tuple(str(name) for name in digits.target_names),
        keys=range(num_images),
        reader=ArrayReader(pixels),
        decoded=pixels,
    )
