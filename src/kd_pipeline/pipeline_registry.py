"""Every pipeline that `kedro run --pipelines=` can name, written out by hand.

Kedro's `find_pipelines` imports only a folder of the requested name, so that
`kedro run --pipelines=distill` would find nothing.
"""

import warnings
from collections.abc import Sequence

from kedro.pipeline import Pipeline

from kd_pipeline.pipelines import (
    compare_groups,
    data_ingest,
    evaluation,
    model_export,
    soft_target_caching,
    student_distillation,
    sweep,
    teacher_training,
    transfer_split,
    verify_soft_targets,
)
from kd_pipeline.pipelines.student_distillation import TEACHER, Student

# Stages read the data of other namespaces: the dots in their names are meant.
warnings.filterwarnings("ignore", message="One or more dataset names contain '.'")

BASELINE = Student("student_baseline", learns_from="labels")

DISTILL = (
    Student("student_kd"),
    BASELINE,
    Student("student_smoothed", learns_from="labels"),
    Student("student_pseudo"),
)
"""The arms of `distill`: the distilled student, the baseline and the controls."""

DISTILL_CONTROLS = (
    *DISTILL,
    Student("student_longer", learns_from="labels", at_teacher_cost=True),
)
"""The same with a baseline that is given what the teacher costs as further epochs."""

COMPARE_LOSSES = (
    *DISTILL,
    Student("student_reverse_kl"),
    Student("student_jensen_shannon"),
    Student("student_logit_mse"),
    Student("student_dkd"),
    Student("student_nkd"),
    Student("student_dist"),
    Student("student_ttm"),
    Student("student_wttm"),
    Student("student_standardised"),
)
"""A student for each loss, and two of labels, at equal settings or, after a sweep, equal tuning."""

DISTILL_LIVE = (
    Student("student_live", live=True),
    BASELINE,
    Student("student_smoothed", learns_from="labels"),
)
"""The arms of `distill_live`, which caches nothing: the teacher runs beside the student."""

TEACHER_ASSISTANT = (
    Student("assistant"),
    Student("student_assisted", learns_from="assistant"),
    Student("student_kd"),
    BASELINE,
)
"""A model of a size between teacher and student (Mirzadeh et al. 2020, arXiv:1902.03393)."""

DISTILL_PAIR = (Student("student_kd"), BASELINE)
"""The distilled student and the baseline without controls, for runs of hours."""

BORN_AGAIN = (
    Student("generation_1"),
    Student("generation_2", learns_from="generation_1"),
    Student("generation_3", learns_from="generation_2"),
    Student("student_kd"),
    BASELINE,
)
"""Generations of the teacher's own kind (Furlanello et al. 2018, arXiv:1805.04770)."""


def register_pipelines() -> dict[str, Pipeline]:
    """Map names to pipelines; `distill` is the whole run and the default."""
    experiments = {
        "distill": _experiment(DISTILL),
        "distill_controls": _experiment(DISTILL_CONTROLS),
        "compare_losses": _experiment(COMPARE_LOSSES),
        "distill_pair": _experiment(DISTILL_PAIR),
        "distill_live": _experiment(DISTILL_LIVE),
        "teacher_assistant": _experiment(TEACHER_ASSISTANT),
        "born_again": _experiment(BORN_AGAIN),
    }
    stages = {
        "data_ingest": data_ingest.create_pipeline(),
        "transfer_split": transfer_split.create_pipeline(),
        "teacher_training": teacher_training.create_pipeline(),
        "soft_target_caching": soft_target_caching.create_pipeline(),
        "student_distillation": student_distillation.create_pipeline(DISTILL),
        "evaluation": evaluation.create_pipeline(student.name for student in DISTILL),
        "model_export": model_export.create_pipeline(),
        "verify_soft_targets": verify_soft_targets.create_pipeline(),
        "sweep": sweep.create_pipeline(
            {one.name: one.learns_from == TEACHER for one in COMPARE_LOSSES}
        ),
        "compare_groups": compare_groups.create_pipeline(),
    }
    return {"__default__": experiments["distill"], **experiments, **stages}


def _experiment(students: Sequence[Student]) -> Pipeline:
    """A whole run with these students: from images to the report, and to files if asked.

    What follows the caching of the teacher's soft targets has the tag `students`.
    """
    names = [student.name for student in students]
    cached = {one.learns_from for one in students if not one.live}
    before = [
        data_ingest.create_pipeline(),
        transfer_split.create_pipeline(),
        teacher_training.create_pipeline(),
        *(soft_target_caching.create_pipeline(name) for name in cached & {TEACHER}),
    ]
    after = [
        *(soft_target_caching.create_pipeline(name) for name in names if name in cached),
        student_distillation.create_pipeline(students),
        evaluation.create_pipeline(names),
        model_export.create_pipeline(names),
    ]
    return sum(before, Pipeline([])) + Pipeline(after, tags="students")
