"""The node that verifies the soft targets."""

from typing import TYPE_CHECKING, Any

from kd_pipeline.labelling.settings import SoftTargetCachingParams, SoftTargetVerificationParams
from kd_pipeline.training.settings import TeacherParams
from kd_pipeline.views.settings import ViewsParams

if TYPE_CHECKING:
    from pandas import DataFrame

    from kd_pipeline.data.images import ImageSet
    from kd_pipeline.models.checkpoint import ModelCheckpoint
    from kd_pipeline.soft_targets.store import SoftTargets
else:  # Kedro resolves every hint of a node to validate its parameters; these would import torch.
    DataFrame = ImageSet = ModelCheckpoint = SoftTargets = object


def verify_soft_targets(
    soft_targets: SoftTargets,
    checkpoints: list[ModelCheckpoint],
    images: ImageSet,
    examples: DataFrame,
    splits: DataFrame,
    params: SoftTargetVerificationParams,
    teacher: TeacherParams,
    caching: SoftTargetCachingParams,
    views: ViewsParams,
) -> dict[str, Any]:
    """Label random rows again and refuse a cache that holds something else.

    Where the teacher's logits were computed elsewhere there are no `checkpoints`: the file that
    `teacher` names is read again. `caching` is how the rows were labelled for the cache.
    """
    from kd_pipeline.data.dataset import LabelledImages
    from kd_pipeline.labelling import verification
    from kd_pipeline.labelling.members import read_given_logits

    data = LabelledImages(images, examples, splits)
    members = checkpoints or read_given_logits(teacher.given_logits, data)
    return verification.verify_soft_targets(soft_targets, members, data, params, caching, views)
