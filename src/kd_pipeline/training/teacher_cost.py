"""What a teacher costs, in epochs of a student that learns without it."""

import logging
import math
from collections.abc import Sequence

from kd_pipeline.data.dataset import LabelledImages
from kd_pipeline.data.splits import student_rows
from kd_pipeline.models.checkpoint import ModelCheckpoint, build_classifier, count_macs
from kd_pipeline.training.initial import initial_model
from kd_pipeline.training.settings import StudentParams
from kd_pipeline.views.settings import ViewsParams

logger = logging.getLogger(__name__)

TRAINING_PASSES = 3
"""Forward passes that one step costs: its own, and a backward pass of about two."""


def epochs_of_teacher_cost(
    teachers: Sequence[ModelCheckpoint],
    data: LabelledImages,
    student: StudentParams,
    views: ViewsParams,
) -> int:
    """Epochs of a student that take what the teacher's training and labelling took, rounded up.

    Counted in multiply-accumulates, so that they are the same on every machine. What a given
    teacher's training took is left out where its checkpoint does not hold it.
    """
    batch_size = student.training.batch_size
    # Epochs are whole batches.
    images = math.ceil(len(student_rows(data.splits)) / batch_size) * batch_size
    macs = [count_macs(build_classifier(teacher)) for teacher in teachers]
    trained = [_training_examples(teacher) for teacher in teachers]
    if None in trained:
        logger.info("  the training of a given teacher is not on record: only labelling is counted")
    labelled = len(data.ids("transfer")) * views.num_cached_views()
    spent = sum(
        own * (TRAINING_PASSES * (examples or 0) + labelled)
        for own, examples in zip(macs, trained, strict=True)
    )
    ids = data.ids("validation")
    untrained = initial_model(data, student.model, student.pretrained, ids)(0)
    extra = math.ceil(spent / (TRAINING_PASSES * count_macs(untrained) * images))
    logger.info("  the teacher and its cache cost as much as %d epochs of this student", extra)
    return extra


def _training_examples(teacher: ModelCheckpoint) -> int | None:
    """Images shown to a teacher while it was trained."""
    training = teacher.facts.get("parameters", {}).get("training")
    if training is None or "steps" not in teacher.facts:
        return None
    return int(teacher.facts["steps"] * training["batch_size"])
