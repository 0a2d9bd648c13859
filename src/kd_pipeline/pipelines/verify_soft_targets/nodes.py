"""The node that verifies the soft targets."""

from typing import TYPE_CHECKING, Any

import pandas as pd

from kd_pipeline.labelling.settings import SoftTargetCachingParams, SoftTargetVerificationParams
from kd_pipeline.views.settings import ViewsParams

if TYPE_CHECKING:
    from kd_pipeline.data.images import ImageSet
    from kd_pipeline.models.checkpoint import ModelCheckpoint
    from kd_pipeline.soft_targets.store import SoftTargets
else:  # Kedro resolves every hint of a node to validate its parameters; these would import torch.
    ImageSet = ModelCheckpoint = SoftTargets = object


def verify_soft_targets(
    soft_targets: SoftTargets,
    checkpoints: list[ModelCheckpoint],
    images: ImageSet,
    splits: pd.DataFrame,
    params: SoftTargetVerificationParams,
    caching: SoftTargetCachingParams,
    views: ViewsParams,
) -> dict[str, Any]:
    """Label random rows again and refuse a cache that holds something else.

    Args:
        soft_targets: The cache.
        checkpoints: The teacher; only read.
        images: The pixels.
        splits: The cache must belong to them.
        params: `soft_target_verification` in parameters_verify_soft_targets.yml.
        caching: `soft_target_caching`: rows are labelled as they were for the cache.
        views: `views` in parameters_views.yml.
    """
    from kd_pipeline.data.splits import split_fingerprint
    from kd_pipeline.labelling import verification
    from kd_pipeline.views import ViewPolicy

    return verification.verify_soft_targets(
        soft_targets,
        checkpoints,
        images,
        splits_fingerprint=split_fingerprint(splits),
        policy=ViewPolicy(**views.policy_arguments()),
        num_views=views.num_cached_views(),
        seed=params.seed,
        num_rows=params.num_rows,
        batch_size=caching.batch_size,
        device=caching.device,
        precision=caching.precision,
    )
