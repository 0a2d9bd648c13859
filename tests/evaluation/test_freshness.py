"""Nothing stale is measured."""

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from kd_pipeline.errors import StaleArtefactError
from kd_pipeline.evaluation.freshness import check_fresh, find_sources
from kd_pipeline.soft_targets.settings import SoftTargetsParams

Changed = Callable[..., Any]


def check(stage: Any, **average: Any) -> None:
    check_fresh(
        [one.fingerprint for one in stage.teacher],
        stage.teacher,
        stage.students,
        stage.data.labelled_provenance,
        SoftTargetsParams(**average),
    )


def test_what_belongs_together_is_let_in(
    stage: Any, chain: Any, caplog: pytest.LogCaptureFixture
) -> None:
    check(stage)
    check(chain)
    assert not caplog.records


@pytest.mark.parametrize("fact", ["images", "splits", "labels"])
def test_a_student_of_other_data_is_refused(stage: Any, changed: Changed, fact: str) -> None:
    stage.students["student_kd"][1] = changed(stage.students["student_kd"][1], **{fact: "other"})
    message = rf"`student_kd.checkpoints\[1\]` do not match this run's {fact} \(artefact other"
    with pytest.raises(StaleArtefactError, match=message) as caught:
        check(stage)
    assert "student_distillation" in str(caught.value)


def test_a_student_without_record_of_its_data_is_refused(stage: Any) -> None:
    arm = stage.students["student_baseline"]
    arm[0] = replace(arm[0], facts={})
    with pytest.raises(StaleArtefactError, match="none stated"):
        check(stage)


@pytest.mark.parametrize("fact", ["images", "splits", "labels"])
def test_a_teacher_of_other_data_is_refused(stage: Any, changed: Changed, fact: str) -> None:
    stage.teacher[0] = changed(stage.teacher[0], **{fact: "other"})
    message = rf"`teacher.checkpoints\[0\]` .* {fact} .*--from-nodes=teacher.train_teacher"
    with pytest.raises(StaleArtefactError, match=message):
        check(stage)


def test_a_teacher_without_facts_is_warned_of(stage: Any, caplog: pytest.LogCaptureFixture) -> None:
    stage.teacher[0] = replace(stage.teacher[0], facts={"given": "folder"})
    with caplog.at_level(logging.WARNING):
        check(stage)
    assert "`teacher.checkpoints[0]` has no record of its training data" in caplog.text


def test_imported_logits_are_warned_of(stage: Any, caplog: pytest.LogCaptureFixture) -> None:
    fingerprints = [one.fingerprint for one in stage.teacher]
    check_fresh(
        fingerprints, [], stage.students, stage.data.labelled_provenance, SoftTargetsParams()
    )
    assert "cannot be verified" in caplog.text


def test_students_of_another_teacher_are_refused(stage: Any, changed: Changed) -> None:
    arm = stage.students["student_kd"]
    arm[:] = [changed(one, teacher=["another"]) for one in arm]
    message = r"`student_kd.checkpoints\[0\]` .* teacher \(artefact \['another'\], this run"
    with pytest.raises(StaleArtefactError, match=message) as caught:
        check(stage)
    assert "soft_target_caching" in str(caught.value)


def test_students_of_part_of_an_ensemble_are_refused(
    staging: Callable[..., Any], changed: Changed
) -> None:
    stage = staging(num_members=2)
    check(stage)
    arm = stage.students["student_kd"]
    arm[0] = changed(arm[0], teacher=arm[0].facts["teacher"][:1])
    with pytest.raises(StaleArtefactError, match="do not match this run's teacher"):
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


def test_a_student_between_is_found_by_its_fingerprint(chain: Any) -> None:
    found = find_sources([one.fingerprint for one in chain.teacher], chain.students)
    assert found == {
        "assistant": "teacher",
        "student_assisted": "assistant",
        "student_baseline": "labels",
    }


@pytest.mark.parametrize("replicate", [0, 1])
def test_a_student_of_an_older_model_between_is_refused(
    chain: Any, changed: Changed, replicate: int
) -> None:
    arm = chain.students["student_assisted"]
    arm[replicate] = changed(arm[replicate], teacher=["older"])
    message = rf"`student_assisted.checkpoints\[{replicate}\]` .* teacher .*pipeline that trains"
    with pytest.raises(StaleArtefactError, match=message):
        check(chain)


def test_only_the_compared_students_need_as_many_replicates_and_alike_settings(
    chain: Any, changed: Changed
) -> None:
    between = chain.students["assistant"]
    between[0] = changed(between[0], shared={"training": "longer"})
    check(chain)
    del chain.students["student_baseline"][1:]
    with pytest.raises(StaleArtefactError, match="same number of replicates"):
        check(chain)


def test_a_student_of_another_average_of_the_members_is_refused(
    staging: Callable[..., Any], changed: Changed
) -> None:
    """Members averaged otherwise are another teacher: agreement with it would mean nothing."""
    stage, first = staging(num_members=2), {"ensemble_average": "arithmetic"}
    first["member_weights"] = (1.0, 0.0)
    arm = stage.students["student_kd"]
    arm[1] = changed(arm[1], teacher_ensemble=SoftTargetsParams(**first).describe(2))
    check(stage, **first)
    message = r"`student_kd.checkpoints\[1\]` do not match this run's ensemble average"
    with pytest.raises(StaleArtefactError, match=message):
        check(stage)
