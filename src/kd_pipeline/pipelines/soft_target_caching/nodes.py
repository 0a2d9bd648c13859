"""Nodes of soft-target caching."""

from typing import TYPE_CHECKING

import pandas as pd

from kd_pipeline.parameters import SoftTargetCachingParams, ViewsParams

if TYPE_CHECKING:
    from kd_pipeline.data.images import ImageSet
    from kd_pipeline.models.checkpoint import ModelCheckpoint
    from kd_pipeline.soft_targets.store import SoftTargets
else:  # Kedro resolves every hint of a node to validate its parameters; these would import torch.
    ImageSet = ModelCheckpoint = SoftTargets = object


def cache_soft_targets(
    checkpoints: list[ModelCheckpoint],
    images: ImageSet,
    splits: pd.DataFrame,
    params: SoftTargetCachingParams,
    views: ViewsParams,
) -> SoftTargets:
    """Label every view of the transfer set with every member's logits.

    Logits are kept, not probabilities, so that temperature stays the student's choice.

    Args:
        checkpoints: The teacher; only read.
        images: The pixels.
        splits: Whose role `transfer` is labelled.
        params: `soft_target_caching` in parameters_soft_target_caching.yml.
        views: `views` in parameters_views.yml.
    """
    from kd_pipeline.data.splits import ids_with_role, split_fingerprint
    from kd_pipeline.data.views import ViewPolicy
    from kd_pipeline.labelling.soft_targets import label_transfer_set

    return label_transfer_set(
        checkpoints,
        images,
        ids_with_role(splits, "transfer"),
        splits_fingerprint=split_fingerprint(splits),
        policy=ViewPolicy(**views.policy_arguments()),
        num_views=views.num_views,
        batch_size=params.batch_size,
        device=params.device,
        precision=params.precision,
    )


def summarise_soft_targets(soft_targets: SoftTargets, examples: pd.DataFrame) -> pd.DataFrame:
    """Describe how soft the soft targets are and how often they agree with known labels.

    Args:
        soft_targets: The cache.
        examples: The labels.
    """
    from kd_pipeline.soft_targets.summary import summarise_soft_targets as summarise

    labelled = examples.dropna(subset="label")
    labels = dict(zip(labelled["example_id"], labelled["label"].astype(int), strict=True))
    return summarise(soft_targets, labels)
