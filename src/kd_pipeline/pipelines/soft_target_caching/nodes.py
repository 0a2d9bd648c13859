"""Nodes of soft-target caching."""

from typing import TYPE_CHECKING

import pandas as pd

from kd_pipeline.labelling.settings import SoftTargetCachingParams
from kd_pipeline.soft_targets.settings import SoftTargetsParams
from kd_pipeline.views.settings import ViewsParams

if TYPE_CHECKING:
    from kd_pipeline.data.images import ImageSet
    from kd_pipeline.models.checkpoint import ModelCheckpoint
    from kd_pipeline.soft_targets.parts_folder import PartsFolder
    from kd_pipeline.soft_targets.store import SoftTargets
else:  # Kedro resolves every hint of a node to validate its parameters; these would import torch.
    ImageSet = ModelCheckpoint = PartsFolder = SoftTargets = object


def cache_soft_targets(
    checkpoints: list[ModelCheckpoint],
    images: ImageSet,
    examples: pd.DataFrame,
    splits: pd.DataFrame,
    parts: PartsFolder,
    params: SoftTargetCachingParams,
    views: ViewsParams,
    reading: SoftTargetsParams,
) -> SoftTargets:
    """Label every view of the transfer set with every member's logits.

    Logits are kept, not probabilities, so that temperature stays the student's choice.

    Args:
        checkpoints: The teacher; only read.
        images: The pixels.
        examples: The labels by which the teacher is judged, where a bar is set.
        splits: Whose role `transfer` is labelled.
        parts: Where the store is made, and what an interrupted run has left of it.
        params: `soft_target_caching` in parameters_soft_target_caching.yml.
        views: `views` in parameters_views.yml.
        reading: `soft_targets`: members are judged as they will be mixed.

    Returns:
        The finished store where it was made; the catalog moves it into its place.
    """
    from kd_pipeline.data.splits import ids_with_role, split_fingerprint
    from kd_pipeline.labelling.accuracy_gate import check_accuracy
    from kd_pipeline.labelling.soft_targets import label_transfer_set
    from kd_pipeline.soft_targets.ensemble import Mixing
    from kd_pipeline.views import ViewPolicy

    mixing, num_views = Mixing(reading.mixing, reading.member_weights), views.num_cached_views()
    computing = params.model_dump(include={"batch_size", "device", "precision"})
    if params.min_validation_accuracy is not None:
        bar = params.min_validation_accuracy
        check_accuracy(checkpoints, images, examples, splits, bar=bar, mixing=mixing, **computing)
    return label_transfer_set(
        checkpoints,
        images,
        ids_with_role(splits, "transfer"),
        parts=parts,
        splits_fingerprint=split_fingerprint(splits),
        policy=ViewPolicy(**views.policy_arguments()),
        num_views=num_views,
        rows_per_part=params.rows_per_part,
        top_k=params.top_k,
        temperature=params.temperature,
        **computing,
    )
