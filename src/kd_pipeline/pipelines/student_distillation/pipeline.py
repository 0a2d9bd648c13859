"""Student distillation: one namespace per student, all wired alike."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from kedro.pipeline import Node, Pipeline

from kd_pipeline.errors import ParameterError
from kd_pipeline.pipelines.student_distillation.nodes import (
    make_trainer_of_teaching_student,
    train_at_teacher_cost,
    train_on_labels,
    train_on_live_teacher,
    train_on_soft_targets,
)

LABELS, TEACHER = "labels", "teacher"
_DATA = {name: name for name in ("images", "examples", "splits", "memory_budget")}
_OWN = {
    "training_states": "training_states",
    "student": "params:student",
    "arm": "params:arm",
    "views": "params:views",
    "soft_target_params": "params:soft_targets",
}


@dataclass(frozen=True)
class Student:
    """One way to train a student: a line in the registry; the YAML block of its name sets it up."""

    name: str
    learns_from: str = TEACHER
    """`labels` alone, the `teacher`, or another student by its name."""
    live: bool = False
    """Whether the teacher runs beside the student instead of being read from its cache."""
    at_teacher_cost: bool = False
    """Whether a student of `labels` trains for as many further epochs as the teacher costs."""


def teaching_students(students: Sequence[Student]) -> list[str]:
    """Names of the students that others learn from."""
    taught_by = {student.learns_from for student in students}
    return [student.name for student in students if student.name in taught_by]


def create_pipeline(students: Sequence[Student]) -> Pipeline:
    """Wire one node per student; dataset names are those of catalog_student_distillation.yml.

    Raises:
        ParameterError: If a name is there twice, or a student learns from what is not there.
    """
    names = [student.name for student in students]
    if len({*names, LABELS, TEACHER}) < len(names) + 2:
        raise ParameterError("students", f"have names of their own, not {LABELS}, {TEACHER}", names)
    for one in students:
        sources = [TEACHER, *names] if one.live else [LABELS, TEACHER, *names]
        if one.at_teacher_cost and one.learns_from != LABELS:
            raise ParameterError(f"{one.name}.at_teacher_cost", "be of labels", one.learns_from)
        if one.learns_from not in sources:
            rule = f"be one of {', '.join(sources)}"
            raise ParameterError(f"{one.name}.learns_from", rule, one.learns_from)
    teaching = teaching_students(students)
    return sum((_wire(one, teaches=one.name in teaching) for one in students), Pipeline([]))


def _wire(student: Student, *, teaches: bool) -> Pipeline:
    source, outputs = student.learns_from, ["checkpoints", "history"]
    function: Callable[..., Any]
    # The teacher's data keep their names; inside the namespace they have names of their own.
    taught: dict[str, tuple[str, str]] = {}
    extra: dict[str, str] = {}
    if source == LABELS and student.at_teacher_cost:
        function = train_at_teacher_cost
        taught = {"checkpoints": ("checkpoints_of_teacher", f"{TEACHER}.checkpoints")}
    elif source == LABELS:
        function = train_on_labels
    elif student.live:
        function = train_on_live_teacher
        taught = {"checkpoints": ("checkpoints_of_teacher", f"{source}.checkpoints")}
        extra = {"caching": "params:soft_target_caching"}
    else:
        function = train_on_soft_targets
        cache = "soft_targets" if source == TEACHER else f"{source}.soft_targets"
        taught = {
            "soft_targets": ("soft_targets_of_teacher", cache),
            "teacher_card": ("card_of_teacher", f"{source}.card"),
        }
    if teaches:
        function = make_trainer_of_teaching_student(student.name, function)
        outputs = [*outputs, "card"]
    inputs = {**_DATA, **_OWN, **extra, **{name: inside for name, (inside, _) in taught.items()}}
    parameters = {value for value in inputs.values() if value.startswith("params:")}
    return Pipeline(
        [Node(func=function, inputs=inputs, outputs=outputs, name="train_student")],
        namespace=student.name,
        inputs={**_DATA, **dict(taught.values())},
        parameters={v: f"params:{student.name}" if v == "params:arm" else v for v in parameters},
    )
