"""Nothing stale is measured."""

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from kd_pipeline.data.splits import split_fingerprint
from kd_pipeline.errors import StaleArtefactError
from kd_pipeline.evaluation.freshness import check_fresh
from kd_pipeline.soft_targets.ensemble import Mixing

Changed = Callable[..., Any]


def check(stage: Any) -> None:
    check_fresh(
        stage.teacher,
        stage.students,
        images=stage.images.fingerprint,
        splits=split_fingerprint(stage.splits),
        class_names=stage.images.class_names,
    )


def test_what_belongs_together_is_let_in(stage: Any, caplog: pytest.LogCaptureFixture) -> None:
    check(stage)
    assert not caplog.records


@pytest.mark.parametrize("fact", ["images", "splits"])
def test_a_student_of_other_data_is_refused(stage: Any, changed: Changed, fact: str) -> None:
    stage.students["student_kd"][1] = changed(stage.students["student_kd"][1], **{fact: "other"})
    message = rf"`student_kd.checkpoints\[1\]` must be made from the {fact} at hand .* got other"
    with pytest.raises(StaleArtefactError, match=message) as caught:
        check(stage)
    assert "student_distillation" in str(caught.value)


def test_a_student_that_does_not_say_its_data_is_refused(stage: Any) -> None:
    arm = stage.students["student_baseline"]
    arm[0] = replace(arm[0], facts={})
    with pytest.raises(StaleArtefactError, match="got none stated"):
        check(stage)


@pytest.mark.parametrize("fact", ["images", "splits"])
def test_a_teacher_of_other_data_is_refused(stage: Any, changed: Changed, fact: str) -> None:
    stage.teacher[0] = changed(stage.teacher[0], **{fact: "other"})
    with pytest.raises(StaleArtefactError, match=rf"`teacher.checkpoints\[0\]` .* the {fact}"):
        check(stage)


def test_a_teacher_without_facts_is_warned_of(stage: Any, caplog: pytest.LogCaptureFixture) -> None:
    stage.teacher[0] = replace(stage.teacher[0], facts={"given": "folder"})
    with caplog.at_level(logging.WARNING):
        check(stage)
    assert "cannot be verified" in caplog.text


def test_students_of_another_teacher_are_refused(stage: Any, changed: Changed) -> None:
    arm = stage.students["student_kd"]
    arm[0] = changed(arm[0], teacher=["another"])
    with pytest.raises(StaleArtefactError, match=r"from the teacher at hand .*another") as caught:
        check(stage)
    assert "soft_target_caching" in str(caught.value)


def test_students_of_part_of_an_ensemble_are_refused(
    staging: Callable[..., Any], changed: Changed
) -> None:
    stage = staging(num_members=2)
    check(stage)
    arm = stage.students["student_kd"]
    arm[0] = changed(arm[0], teacher=arm[0].facts["teacher"][:1])
    with pytest.raises(StaleArtefactError, match="from the teacher at hand"):
        check(stage)


@pytest.mark.parametrize("whose", ["teacher", "student_kd"])
def test_other_classes_are_refused(stage: Any, whose: str) -> None:
    models = stage.teacher if whose == "teacher" else stage.students[whose]
    models[0] = replace(models[0], class_names=("b", "a", "c"))
    with pytest.raises(StaleArtefactError, match=rf"`{whose}.checkpoints\[0\]` .* class names"):
        check(stage)


def test_arms_of_different_settings_are_refused(stage: Any, changed: Changed) -> None:
    """Hyper-parameters of baseline and distilled student that differ explain any gain."""
    for arm, lr in (("student_baseline", 0.1), ("student_kd", 0.2)):
        alike = {"seed": 0, "training": {"lr": lr}}
        stage.students[arm] = [changed(c, shared=alike) for c in stage.students[arm]]
    with pytest.raises(StaleArtefactError, match=r"must be trained alike .* got another training;"):
        check(stage)


@pytest.mark.parametrize("left", [0, 1])
def test_arms_of_different_numbers_of_replicates_are_refused(stage: Any, left: int) -> None:
    del stage.students["student_kd"][left:]
    with pytest.raises(StaleArtefactError, match=f"student_baseline 2, student_kd {left}"):
        check(stage)


def chain(stage: Any, changed: Changed) -> dict[str, Any]:
    """A hop between the teacher and the distilled arm, of another number of models."""
    between = [
        changed(stage.students["student_baseline"][0], teacher=[stage.teacher[0].fingerprint])
    ]
    last = [changed(one, teacher=[between[0].fingerprint]) for one in stage.students["student_kd"]]
    return {"between": between, "last": last, "alone": stage.students["student_baseline"]}


def check_chain(stage: Any, students: dict[str, Any]) -> None:
    check_fresh(
        stage.teacher,
        students,
        images=stage.images.fingerprint,
        splits=split_fingerprint(stage.splits),
        class_names=stage.images.class_names,
        learnt_from={"between": "teacher", "last": "between", "alone": "teacher"},
        paired=("last", "alone"),
        rerun="kedro run --pipelines=chain",
    )


def test_an_arm_may_have_learnt_from_another(stage: Any, changed: Changed) -> None:
    check_chain(stage, chain(stage, changed))


def test_an_arm_of_an_older_model_before_it_is_refused(stage: Any, changed: Changed) -> None:
    students = chain(stage, changed)
    students["last"][1] = changed(students["last"][1], teacher=[stage.teacher[0].fingerprint])
    message = r"`last.checkpoints\[1\]` must be made from the teacher .* --pipelines=chain"
    with pytest.raises(StaleArtefactError, match=message):
        check_chain(stage, students)


def test_only_the_paired_arms_need_as_many_replicates(stage: Any, changed: Changed) -> None:
    students = chain(stage, changed)
    students["alone"] = students["alone"][:1]
    with pytest.raises(StaleArtefactError, match="same number of replicates"):
        check_chain(stage, students)


def test_a_student_of_another_mixture_of_the_members_is_refused(
    stage: Any, changed: Changed
) -> None:
    """Members mixed otherwise are another teacher: agreement with it would mean nothing."""
    equal, first = Mixing(), Mixing("arithmetic", (1.0, 0.0))
    arm = stage.students["student_kd"]
    arm[1] = changed(arm[1], teacher_mixing=first.described(2))
    arguments = {
        "images": stage.images.fingerprint,
        "splits": split_fingerprint(stage.splits),
        "class_names": stage.images.class_names,
    }
    check_fresh(stage.teacher, stage.students, **arguments, mixture=first.described(2))
    message = r"`student_kd.checkpoints\[1\]` must be made from the mixture of members"
    with pytest.raises(StaleArtefactError, match=message):
        check_fresh(stage.teacher, stage.students, **arguments, mixture=equal.described(2))
