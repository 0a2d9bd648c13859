"""scikit-learn's packaged digits: nothing to download."""

from importlib.metadata import distribution

import numpy as np

from kd_pipeline.data.listing import ArrayReader, ImageListing
from kd_pipeline.data.settings import DigitsSource


def list_digits(source: DigitsSource) -> ImageListing:  # noqa: ARG001 - it has no settings
    """List the 1,797 grey images of 8 by 8 pixels; example_id = position.

    Their values 0 to 16 are scaled to 0 to 255; there is no test set of their own.
    """
    # Not `load_digits`: the import of scikit-learn takes longer than all of the ingest.
    file = distribution("scikit-learn").locate_file("sklearn/datasets/data/digits.csv.gz")
    table = np.loadtxt(str(file), delimiter=",", dtype=np.int64)
    images, labels = table[:, :-1].reshape(-1, 1, 8, 8), table[:, -1]
    pixels = np.round(images * (255 / 16)).astype(np.uint8)
    num_images = len(pixels)
    return ImageListing(
        example_ids=np.arange(num_images, dtype=np.int64),
        sources=[f"digits/{position}" for position in range(num_images)],
        labels=labels,
        partitions=np.full(num_images, "pool"),
        class_names=tuple("0123456789"),
        keys=range(num_images),
        reader=ArrayReader(pixels),
        decoded=pixels,
    )
