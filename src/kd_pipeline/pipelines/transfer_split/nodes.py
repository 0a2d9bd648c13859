"""Nodes of the transfer-set split."""

from typing import TYPE_CHECKING

from kd_pipeline.data.settings import TransferSplitParams

if TYPE_CHECKING:
    from pandas import DataFrame

    from kd_pipeline.data.images import ImageSet
else:  # Kedro resolves every hint of a node to validate its parameters; these would import torch.
    DataFrame = ImageSet = object


def split_transfer_set(
    images: ImageSet, examples: DataFrame, params: TransferSplitParams
) -> tuple[DataFrame, DataFrame]:
    """Give every example its roles; return `splits` and its summary by role and class."""
    from kd_pipeline.data.splits import split_examples, summarise_splits

    splits = split_examples(examples, images.class_names, params)
    return splits, summarise_splits(splits, examples, images.class_names)
