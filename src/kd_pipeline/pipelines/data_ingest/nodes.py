"""Node of data ingest."""

from typing import TYPE_CHECKING

from kd_pipeline.data.settings import DataIngestParams

if TYPE_CHECKING:
    from pandas import DataFrame

    from kd_pipeline.data.images import ImageSet
    from kd_pipeline.memory import MemoryBudget
else:  # Kedro resolves every hint of a node to validate its parameters; these would import pandas.
    DataFrame = ImageSet = MemoryBudget = object


def ingest_image_source(
    params: DataIngestParams, memory_budget: MemoryBudget
) -> tuple[ImageSet, DataFrame, DataFrame]:
    """Read, check and hash all images of the source.

    Returns:
        The images; one row per image; one row per image that was left out, with its reason.
    """
    from kd_pipeline.data.ingest import ingest_images

    ingested = ingest_images(params, memory_budget)
    return ingested.images, ingested.examples, ingested.rejected
