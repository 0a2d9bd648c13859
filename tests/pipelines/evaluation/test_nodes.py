"""The nodes of evaluation: nothing stale, a teacher of imported logits, reproducible, strict JSON.

What is measured, and how: tests/evaluation.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from kd_pipeline.data.dataset import LabelledImages
from kd_pipeline.errors import CheckpointError, StaleArtefactError
from kd_pipeline.evaluation.terminal import arms_table
from kd_pipeline.labelling.members import read_given_logits
from kd_pipeline.models.checkpoint import ModelCheckpoint, build_classifier
from kd_pipeline.pipelines.evaluation.nodes import (
    compare_arms,
    draw_figures,
    evaluate_models,
    write_report,
)
from kd_pipeline.training.settings import TeacherParams

RUN = {"group": "g", "env": "base"}


def compared(given: dict[str, Any]) -> dict[str, Any]:
    return compare_arms(*evaluate_models(**given), given["splits"], given["params"], RUN)


def of_another_teacher(checkpoint: ModelCheckpoint, *teacher: str) -> ModelCheckpoint:
    return replace(checkpoint, facts={**checkpoint.facts, "teacher": list(teacher)})


def test_models_trained_on_other_splits_are_refused_though_ids_are_the_same(
    given: dict[str, Any],
) -> None:
    splits = given["splits"]
    given["splits"] = splits.assign(
        role=splits["role"].replace({"test": "validation", "validation": "test"})
    )
    with pytest.raises(StaleArtefactError, match="this run's splits"):
        evaluate_models(**given)


def test_students_of_another_teacher_are_refused(given: dict[str, Any]) -> None:
    given["student_kd"] = [of_another_teacher(one, "older") for one in given["student_kd"]]
    with pytest.raises(StaleArtefactError, match=r"`student_kd.checkpoints\[0\]` .* teacher"):
        evaluate_models(**given)


@pytest.fixture
def importing(
    given: dict[str, Any], data: LabelledImages, write_logits: Callable[..., TeacherParams]
) -> Callable[..., dict[str, Any]]:
    """Put logits computed elsewhere, for the rows of these roles only, in the teacher's place."""

    def make(*roles: str) -> dict[str, Any]:
        ids = np.unique(np.concatenate([data.ids(role) for role in roles]))
        with torch.inference_mode():
            logits = build_classifier(given["teacher"][0])(data.images.take(ids)).numpy()
        teacher = write_logits(ids, logits, data.images.class_names)
        (imported,) = read_given_logits(teacher.given_logits, data)
        taught = [of_another_teacher(one, imported.fingerprint) for one in given["student_kd"]]
        fewer = {k: v for k, v in given.items() if k not in ("assistant", "student_assisted")}
        return fewer | {"teacher": [], "teacher_params": teacher, "student_kd": taught}

    return make


def test_imported_logits_of_the_test_set_are_measured_like_a_model(
    given: dict[str, Any], importing: Callable[..., dict[str, Any]]
) -> None:
    of_model, _ = evaluate_models(**given)
    imported, metrics = evaluate_models(**importing("test", "transfer"))
    for name in ("predicted", "confidence", "nll"):
        ours, theirs = (rows.query("role == 'teacher'")[name] for rows in (imported, of_model))
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    assert metrics["test/teacher_agreement"].notna().all()


def test_imported_logits_without_the_test_set_leave_the_teacher_out_of_all_results(
    importing: Callable[..., dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    given = importing("transfer")
    predictions, metrics = evaluate_models(**given)
    assert "do not cover the test set: it is not measured" in caplog.text
    assert set(metrics["role"]) == {"student_baseline", "student_kd"}
    comparison = compare_arms(predictions, metrics, given["splits"], given["params"], RUN)
    json.dumps(comparison, allow_nan=False)
    assert comparison["teacher"] is None
    assert comparison["arms"]["student_kd"]["teacher_agreement"]["mean"] is None
    assert len(draw_figures(predictions, comparison, given["examples"])) == 4
    report = write_report(comparison, given["examples"], given["splits"])
    assert "The teacher's logits were imported and do not cover the test set" in report
    assert "| teacher |" not in report
    table = arms_table(comparison, None).splitlines()
    assert not any(line.startswith("teacher") for line in table)
    assert any(line.startswith("distilled") for line in table)


def test_a_teacher_that_is_neither_trained_nor_given_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(
        CheckpointError, match=r"teacher\.checkpoints` must hold a member, got none"
    ):
        evaluate_models(**given | {"teacher": []})


def test_the_same_again_gives_the_same(given: dict[str, Any]) -> None:
    first, second = compared(given), compared(given)
    assert first == second
    assert (first["group"], first["env"]) == ("g", "base")
