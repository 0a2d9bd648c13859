"""Wiring of students, those that learn from other students among them."""

import pytest
from kedro.pipeline import Pipeline
from kedro.pipeline.node import Node
from kedro.validation.parameter_validator import ParameterValidator

from kd_pipeline.errors import ParameterError
from kd_pipeline.pipelines import soft_target_caching
from kd_pipeline.pipelines.student_distillation import (
    Student,
    create_pipeline,
    teaching_students,
)
from kd_pipeline.training.settings import ArmParams, StudentParams

GENERATIONS = ("large", "middle", "small")
STUDENTS = (
    Student("large"),
    Student("middle", learns_from="large"),
    Student("small", learns_from="middle"),
    Student("student_kd"),
    Student("student_baseline", learns_from="labels"),
)
TEACHING = ["large", "middle"]


@pytest.fixture(scope="module")
def wired() -> Pipeline:
    """The students and all the caches that they learn from."""
    caches = (soft_target_caching.create_pipeline(name) for name in ("teacher", *TEACHING))
    return sum(caches, create_pipeline(STUDENTS))


def node(pipeline: Pipeline, output: str) -> Node:
    (found,) = [node for node in pipeline.nodes if output in node.outputs]
    return found


def inputs_of(pipeline: Pipeline, student: str, *endings: str) -> set[str]:
    inputs = node(pipeline, f"{student}.checkpoints").inputs
    return {name for name in inputs if name.endswith(endings)}


def test_each_student_learns_from_the_cache_of_the_one_before(wired: Pipeline) -> None:
    caches = ("soft_targets", "large.soft_targets", "middle.soft_targets")
    for teacher, cache, student in zip(("teacher", *TEACHING), caches, GENERATIONS, strict=True):
        labels = node(wired, cache)
        assert [n for n in labels.inputs if n.endswith("checkpoints")] == [f"{teacher}.checkpoints"]
        learnt = inputs_of(wired, student, "soft_targets", ".card") - {"params:soft_targets"}
        assert learnt == {cache, f"{teacher}.card"}
        trains = node(wired, f"{student}.history")
        assert (trains.name, trains.namespace) == (f"{student}.train_student", student)


@pytest.mark.parametrize(
    ("students", "message"),
    [
        (
            [Student("a", learns_from="b")],
            r"`a\.learns_from` must be one of labels, teacher, a, got",
        ),
        (
            [Student("a", learns_from="labels", live=True)],
            r"`a\.learns_from` must be one of teacher",
        ),
        ([Student("a", at_teacher_cost=True)], r"`a\.at_teacher_cost` must be of labels, got"),
        ([Student("a"), Student("a")], "`students` must have names of their own"),
        ([Student("teacher")], "`students` must have names of their own"),
    ],
)
def test_a_list_that_cannot_be_wired_is_refused(students: list[Student], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        create_pipeline(students)


def test_those_that_teach_have_a_card_and_no_other(wired: Pipeline) -> None:
    assert teaching_students(STUDENTS) == TEACHING
    cards = {name for name in wired.all_outputs() if name.endswith(".card")}
    assert cards == {"large.card", "middle.card"}


def test_every_cache_is_summed_up_and_drawn_in_the_namespace_of_its_teacher(
    wired: Pipeline,
) -> None:
    for teacher in TEACHING:
        for what in ("soft_target_summary", "soft_target_grid_figure"):
            inspects = node(wired, f"{teacher}.{what}")
            assert f"{teacher}.soft_targets" in inspects.inputs
            assert inspects.namespace == teacher
        assert node(wired, f"{teacher}.soft_targets").namespace == teacher


def test_no_student_of_a_cache_opens_its_teacher(wired: Pipeline) -> None:
    """Students that learn from a cache need no weights but their own."""
    for student in STUDENTS:
        assert not inputs_of(wired, student.name, "checkpoints")


def test_a_student_of_labels_takes_no_cache(wired: Pipeline) -> None:
    taken = inputs_of(wired, "student_baseline", "soft_targets", ".card")
    assert taken == {"params:soft_targets"}


def test_a_live_teacher_is_opened_and_not_cached() -> None:
    wired = create_pipeline([Student("student_live", live=True)])
    assert inputs_of(wired, "student_live", "checkpoints") == {"teacher.checkpoints"}
    assert not inputs_of(wired, "student_live", ".soft_targets", ".card")


def test_of_a_teacher_whose_cost_is_spent_there_are_checkpoints_and_no_logits() -> None:
    wired = create_pipeline([Student("longer", learns_from="labels", at_teacher_cost=True)])
    assert inputs_of(wired, "longer", "checkpoints") == {"teacher.checkpoints"}
    assert not inputs_of(wired, "longer", ".soft_targets", ".card")


def test_students_share_all_settings_but_their_own_block(wired: Pipeline) -> None:
    shared = {"params:student", "params:views", "params:soft_targets"}
    for student in STUDENTS:
        trains = node(wired, f"{student.name}.checkpoints")
        blocks = {name for name in trains.inputs if name.startswith("params:")}
        assert blocks == shared | {f"params:{student.name}"}


def typed_blocks(pipeline: Pipeline) -> dict[str, type]:
    """The blocks that Kedro validates: where it finds no type it validates nothing, in silence."""
    extractor = ParameterValidator({"__default__": pipeline}).type_extractor
    found: dict[str, type] = extractor.extract_types_from_pipelines()
    return found


@pytest.mark.parametrize(
    ("first", "taken"),
    [
        (Student("first"), {"soft_targets", "teacher.card"}),
        (Student("first", live=True), {"teacher.checkpoints"}),
        (Student("first", learns_from="labels"), set()),
    ],
)
def test_a_student_may_teach_whatever_it_learnt_from(first: Student, taken: set[str]) -> None:
    wired = create_pipeline([first, Student("second", learns_from="first")])
    trains = node(wired, "first.checkpoints")
    data = {name for name in trains.inputs if not name.startswith("params:")}
    always = {"images", "examples", "splits", "memory_budget", "first.training_states"}
    assert data == always | taken
    assert trains.outputs == ["first.checkpoints", "first.history", "first.card"]
    blocks = typed_blocks(wired)
    assert (blocks["student"], blocks["first"], blocks["second"]) == (
        StudentParams,
        ArmParams,
        ArmParams,
    )


def test_what_comes_from_outside_is_what_the_stages_before_give(wired: Pipeline) -> None:
    outside = {n for n in wired.inputs() if not n.startswith("params:")}
    given = {"images", "examples", "splits", "memory_budget"}
    given |= {"teacher.checkpoints", "teacher.card"}
    resumed = {f"{student.name}.training_states" for student in STUDENTS}
    parts = {"soft_target_parts", "large.soft_target_parts", "middle.soft_target_parts"}
    assert outside == given | resumed | parts


def test_no_students_make_no_pipeline() -> None:
    assert create_pipeline([]).nodes == []
