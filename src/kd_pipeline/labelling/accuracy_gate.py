"""The refusal of a teacher that is too weak, before it labels anything."""

from collections.abc import Sequence

import torch

from kd_pipeline.data.dataset import LabelledImages
from kd_pipeline.errors import DataError, TeacherTooWeakError
from kd_pipeline.labelling.members import Member, check_members, open_predictor
from kd_pipeline.labelling.settings import SoftTargetCachingParams
from kd_pipeline.soft_targets.ensemble import average_logits
from kd_pipeline.soft_targets.imported import ImportedLogits
from kd_pipeline.soft_targets.settings import SoftTargetsParams

_BAR = "soft_target_caching.min_validation_accuracy"


def check_accuracy(
    teacher: Sequence[Member],
    data: LabelledImages,
    caching: SoftTargetCachingParams,
    soft_targets: SoftTargetsParams,
) -> float | None:
    """Measure a teacher on the validation set and refuse one below the bar, if one is set.

    The clean validation images that have labels are read, never the test set. Several members are
    one teacher, averaged as the students read them, at temperature 1.

    Returns:
        The accuracy, in [0, 1]; None where no bar is set, and nothing is measured.

    Raises:
        TeacherTooWeakError: If it is below the bar.
        DataError: If no validation image has a label, or imported logits leave some of them out.
        CheckpointError, StaleArtefactError: As `check_members`.
    """
    bar = caching.min_validation_accuracy
    if bar is None:
        return None
    check_members(teacher, data)
    ids, labels = data.labelled("validation")
    if len(ids) == 0:
        raise DataError(f"`{_BAR}` needs validation images with labels, got none")
    for member in teacher:
        if isinstance(member, ImportedLogits):
            member.check_covers(ids, what=f"the validation set, on which `{_BAR}` is measured")
    logits = [
        open_predictor(member, data, ids, caching).logits(slice(None), description="validate")
        for member in teacher
    ]
    average = average_logits(torch.stack(logits), soft_targets, temperature=1.0)
    accuracy = float((average.argmax(dim=1) == labels).double().mean())
    if accuracy < bar:
        raise TeacherTooWeakError(
            f"`{_BAR}` is {bar:g}, and the teacher reaches {accuracy:.4f} on {len(ids)} "
            "validation images: it labels nothing"
        )
    return accuracy
