"""Node of data ingest."""

import pandas as pd

from kd_pipeline.data.images import ImageSet
from kd_pipeline.data.settings import DataIngestParams


def ingest_image_source(
    params: DataIngestParams,
) -> tuple[ImageSet, pd.DataFrame, pd.DataFrame]:
    """Read, check and hash all images of the source.

    Returns:
        The images; one row per image; one row per image that was left out, with its reason.
    """
    # Imported here: wiring the pipelines should not pay for Pillow and thread pools.
    from kd_pipeline.data.ingest import ingest_images

    ingested = ingest_images(params)
    return ingested.images, ingested.examples, ingested.rejected
