"""Nodes of the transfer-set split."""

from typing import TYPE_CHECKING

import pandas as pd

from kd_pipeline.data.settings import TransferSplitParams

if TYPE_CHECKING:
    from kd_pipeline.data.images import ImageSet
else:  # Kedro resolves every hint of a node to validate its parameters; these would import torch.
    ImageSet = object


def split_transfer_set(
    images: ImageSet, examples: pd.DataFrame, params: TransferSplitParams
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Give every example its roles, and count them.

    Args:
        images: For the class names.
        examples: One row per image.
        params: `transfer_split` in parameters_transfer_split.yml.

    Returns:
        `splits` and its summary by role and class.
    """
    from kd_pipeline.data.splits import split_examples, summarise_splits

    splits = split_examples(
        examples,
        class_names=images.class_names,
        seed=params.seed,
        test_fraction=params.test_fraction,
        validation_fraction=params.validation_fraction,
        labels_per_class=params.teacher.labels_per_class,
        fraction=params.teacher.fraction,
        relation=params.transfer.relation,
        transfer_fraction=params.transfer.fraction,
        labelled=params.transfer.labelled,
        excluded_classes=params.transfer.excluded_classes,
    )
    return splits, summarise_splits(splits, examples, images.class_names)
