"""A teacher on the validation set: too weak ones are refused, and its temperature is fitted."""

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from kd_pipeline.config import MAX_TEMPERATURE
from kd_pipeline.data.dataset import LabelledImages
from kd_pipeline.errors import DataError, TeacherTooWeakError
from kd_pipeline.labelling.members import Member, check_members, open_predictor
from kd_pipeline.labelling.settings import SoftTargetCachingParams
from kd_pipeline.models.calibration import calibrate
from kd_pipeline.soft_targets.ensemble import average_logits
from kd_pipeline.soft_targets.imported import ImportedLogits
from kd_pipeline.soft_targets.settings import CALIBRATION, KINDS, Calibration, SoftTargetsParams

logger = logging.getLogger(__name__)

_BAR = "soft_target_caching.min_validation_accuracy"


def validate_teacher(
    teacher: Sequence[Member],
    data: LabelledImages,
    caching: SoftTargetCachingParams,
    soft_targets: SoftTargetsParams,
) -> Calibration | None:
    """Fit a teacher's temperature on validation, and refuse one below the bar, if one is set.

    The clean validation images that have labels are read, never the test set; the accuracy is that
    of the members averaged as the students read them, at temperature 1.

    Returns:
        None where validation does not determine a temperature, or no setting needs it and no
        validation image has a label or imported logits leave some of them out.

    Raises:
        TeacherTooWeakError: If it is below the bar.
        DataError: If a setting needs what validation does not give.
        CheckpointError, StaleArtefactError: As `check_members`.
    """
    bar = caching.min_validation_accuracy
    needed_by = _BAR if bar is not None else CALIBRATION if soft_targets.teacher_calibration else ""
    read = _read_validation(teacher, data, caching, needed_by=needed_by)
    if read is None:
        return None
    logits, labels = read
    average = average_logits(logits, soft_targets, temperature=1.0)
    accuracy = float((average.argmax(dim=1) == labels).double().mean())
    if bar is not None and accuracy < bar:
        raise TeacherTooWeakError(
            f"`{_BAR}` is {bar:g}, and the teacher reaches {accuracy:.4f} on {len(labels)} "
            "validation images: it labels nothing"
        )
    calibration = fit_calibration(logits, labels, soft_targets)
    if calibration is None and soft_targets.teacher_calibration is not None:
        raise DataError(
            f"`{CALIBRATION}` needs validation images some but not most of which the teacher gets "
            f"wrong: its accuracy is {accuracy:.4f} on {len(labels)}"
        )
    return calibration


def fit_calibration(
    logits: Tensor, labels: Tensor, soft_targets: SoftTargetsParams
) -> Calibration | None:
    """Fit one temperature to each average of the members that students may ask for.

    Args:
        logits: [num_members, num_examples, num_classes].
        labels: int64 [num_examples].
        soft_targets: The weights of the members.

    Returns:
        None where the labels do not determine one of them: every example is right, so that the NLL
        falls with the temperature to its least value, or so many are wrong that it never rises.
    """
    temperatures = {}
    for kind in KINDS:
        asked = soft_targets.model_copy(update={"ensemble_average": kind})
        average = average_logits(logits, asked, temperature=1.0)
        temperatures[kind] = calibrate(average, labels).temperature
        is_right = average.argmax(dim=1) == labels
        if is_right.all() or temperatures[kind] > 0.99 * MAX_TEMPERATURE:
            return None
    shown = ", ".join(f"{value:.3f} ({kind} average)" for kind, value in temperatures.items())
    logger.info("the teacher's NLL on validation is least at temperature %s", shown)
    return Calibration(temperatures, soft_targets.shares(len(logits)), len(labels))


def _read_validation(
    teacher: Sequence[Member],
    data: LabelledImages,
    caching: SoftTargetCachingParams,
    *,
    needed_by: str,
) -> tuple[Tensor, Tensor] | None:
    """Logits [num_members, num_examples, num_classes] of the labelled validation rows, and labels.

    None where there are none, unless a setting needs them.
    """
    ids, labels = data.labelled("validation")
    imported = [member for member in teacher if isinstance(member, ImportedLogits)]
    if not needed_by and not (len(ids) and all(one.covers(ids) for one in imported)):
        return None
    check_members(teacher, data)
    if len(ids) == 0:
        raise DataError(f"`{needed_by}` needs validation images with labels, got none")
    for member in imported:
        member.check_covers(ids, what=f"the validation set, on which `{needed_by}` is measured")
    logits = [
        open_predictor(member, data, ids, caching).logits(slice(None), description="validate")
        for member in teacher
    ]
    return torch.stack(logits), labels
