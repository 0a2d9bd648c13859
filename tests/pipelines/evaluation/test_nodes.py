"""The nodes on a small stage: every test row once, in pairs, nothing stale, strict JSON."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from kd_pipeline.errors import DataError, StaleArtefactError
from kd_pipeline.evaluation.settings import EvaluationParams
from kd_pipeline.evaluation.terminal import arms_table
from kd_pipeline.models.checkpoint import ModelCheckpoint, build_classifier
from kd_pipeline.models.imported_logits import imported_checkpoint
from kd_pipeline.pipelines.evaluation.nodes import (
    compare_arms,
    draw_figures,
    evaluate_models,
    write_report,
)
from kd_pipeline.soft_targets.settings import SoftTargetsParams

PARAMS = EvaluationParams(batch_size=6, device="cpu", num_bootstrap_samples=100)


MIXING = SoftTargetsParams()


def evaluate(
    stage: Any, params: EvaluationParams = PARAMS, mixing: SoftTargetsParams = MIXING
) -> tuple[pd.DataFrame, pd.DataFrame]:
    data = stage.images, stage.examples, stage.splits
    return evaluate_models(*data, params, mixing, stage.teacher, **stage.students)


def test_every_test_row_is_read_once_by_every_model(stage: Any) -> None:
    """20 rows in batches of 6: a dropped last batch would lose two."""
    predictions, metrics = evaluate(stage)
    expected = stage.splits.query("role == 'test'")["example_id"].tolist()
    for _, rows in predictions.groupby(["role", "replicate"]):
        assert rows["example_id"].tolist() == expected
    assert list(predictions.columns) == [
        "role", "replicate", "example_id", "label", "predicted", "confidence", "nll", "in_top5",
    ]  # fmt: skip
    assert metrics[["role", "replicate"]].to_numpy().tolist() == [
        ["teacher", 0],
        ["student_baseline", 0],
        ["student_baseline", 1],
        ["student_kd", 0],
        ["student_kd", 1],
    ]


def test_metrics_are_those_of_the_model_on_the_test_rows(stage: Any) -> None:
    predictions, metrics = evaluate(stage)
    checkpoint = stage.students["student_kd"][1]
    rows = predictions.query("role == 'student_kd' and replicate == 1")
    row = metrics.query("role == 'student_kd' and replicate == 1").iloc[0]
    with torch.inference_mode():
        pixels = stage.images.take(rows["example_id"].to_numpy())
        logits = build_classifier(checkpoint)(pixels)
    assert rows["predicted"].tolist() == logits.argmax(dim=1).tolist()
    labels = stage.examples.set_index("example_id")["label"][rows["example_id"]].to_numpy(int)
    assert rows["label"].tolist() == labels.tolist()
    assert row["test/errors"] == (rows["predicted"] != labels).sum()
    assert row["checkpoint"] == checkpoint.fingerprint
    assert row["model/parameters"] == 51
    assert row["cost/train_seconds"] == 0.5


def test_the_batch_size_changes_nothing(stage: Any) -> None:
    small, whole = evaluate(stage), evaluate(stage, PARAMS.model_copy(update={"batch_size": 64}))
    pd.testing.assert_frame_equal(small[0], whole[0])
    pd.testing.assert_frame_equal(small[1], whole[1])


def test_an_ensemble_is_one_model_under_its_first_members_fingerprint(
    staging: Callable[..., Any],
) -> None:
    stage = staging(num_members=3)
    predictions, metrics = evaluate(stage)
    rows = predictions[predictions["role"] == "teacher"]
    with torch.inference_mode():
        pixels = stage.images.take(rows["example_id"].to_numpy())
        members = [build_classifier(member)(pixels) for member in stage.teacher]
    mean = torch.stack(members).mean(dim=0).softmax(dim=1)
    np.testing.assert_allclose(rows["confidence"], mean.max(dim=1).values, rtol=1e-5)
    (row,) = metrics[metrics["role"] == "teacher"].to_dict("records")
    assert row["checkpoint"] == stage.teacher[0].fingerprint
    assert row["model/parameters"] == 3 * 51
    assert row["test/teacher_agreement"] == 1.0


def test_an_ensemble_is_mixed_as_the_students_mix_it(staging: Callable[..., Any]) -> None:
    stage = staging(num_members=2)
    mixing = SoftTargetsParams(mixing="arithmetic", member_weights=(0.25, 0.75))
    predictions, _ = evaluate(stage, mixing=mixing)
    rows = predictions[predictions["role"] == "teacher"]
    with torch.inference_mode():
        pixels = stage.images.take(rows["example_id"].to_numpy())
        first, second = (build_classifier(m)(pixels).softmax(dim=1) for m in stage.teacher)
    mean = 0.25 * first + 0.75 * second
    np.testing.assert_allclose(rows["confidence"], mean.max(dim=1).values, rtol=1e-5)


def with_imported_teacher(stage: Any, roles: tuple[str, ...]) -> Any:
    """Logits computed elsewhere, for the rows of these roles only."""
    ids = np.sort(stage.splits.loc[stage.splits["role"].isin(roles), "example_id"].to_numpy())
    with torch.inference_mode():
        logits = build_classifier(stage.teacher[0])(stage.images.take(ids)).numpy()
    teacher = imported_checkpoint(
        ids,
        logits,
        class_names=stage.images.class_names,
        shape=(1, 4, 4),
        images_fingerprint=stage.images.fingerprint,
        facts={},
    )
    kd = [with_facts(m, teacher=[teacher.fingerprint]) for m in stage.students["student_kd"]]
    return stage._replace(teacher=[teacher], students={**stage.students, "student_kd": kd})


def with_facts(checkpoint: ModelCheckpoint, **facts: Any) -> ModelCheckpoint:
    return replace(checkpoint, facts={**checkpoint.facts, **facts})


def test_imported_logits_of_the_test_set_are_measured_like_a_model(stage: Any) -> None:
    of_model, _ = evaluate(stage)
    imported, metrics = evaluate(with_imported_teacher(stage, ("test", "transfer")))
    columns = ["predicted", "confidence", "nll"]
    pd.testing.assert_frame_equal(imported[columns], of_model[columns])
    assert metrics["test/teacher_agreement"].notna().all()


def test_imported_logits_without_the_test_set_leave_the_teacher_out_and_say_so(
    stage: Any, caplog: pytest.LogCaptureFixture
) -> None:
    predictions, metrics = evaluate(with_imported_teacher(stage, ("transfer",)))
    assert "do not cover the test set: it is not measured" in caplog.text
    assert set(predictions["role"]) == set(metrics["role"]) == {"student_baseline", "student_kd"}
    assert metrics["test/teacher_agreement"].isna().all()
    comparison = compare_arms(predictions, metrics, PARAMS)
    json.dumps(comparison, allow_nan=False)
    assert comparison["teacher"] is None
    assert comparison["arms"]["student_kd"]["teacher_agreement"]["mean"] is None
    assert len(draw_figures(predictions, comparison, stage.examples)) == 4
    report = write_report(comparison, metrics)
    assert "The teacher's logits were imported and do not cover the test set" in report
    assert "| teacher |" not in report
    table = arms_table(comparison, None).splitlines()
    assert not any(line.startswith("teacher") for line in table)
    assert any(line.startswith("distilled") for line in table)


def test_nothing_stale_is_measured(stage: Any, changed: Callable[..., Any]) -> None:
    stage.students["student_kd"][0] = changed(stage.students["student_kd"][0], splits="older")
    with pytest.raises(StaleArtefactError, match="splits"):
        evaluate(stage)


def test_a_checkpoint_trained_on_other_splits_is_refused_though_ids_are_the_same(
    stage: Any,
) -> None:
    flipped = stage.splits["role"].map({"test": "transfer", "transfer": "test"})
    swapped = stage._replace(splits=stage.splits.assign(role=flipped))
    with pytest.raises(StaleArtefactError, match="splits"):
        evaluate(swapped)


def test_a_test_row_without_label_is_refused(stage: Any) -> None:
    stage.examples.loc[1, "label"] = pd.NA
    with pytest.raises(DataError, match="every test example must have a label, got 1 without"):
        evaluate(stage)


def test_from_checkpoints_to_report(stage: Any) -> None:
    predictions, metrics = evaluate(stage)
    comparison = compare_arms(predictions, metrics, PARAMS)
    json.dumps(comparison, allow_nan=False)
    assert comparison["method"]["num_test_examples"] == 20
    assert len(draw_figures(predictions, comparison, stage.examples)) == 4
    assert write_report(comparison, metrics).startswith("# Did distillation help?")


def test_the_same_again_gives_the_same(stage: Any) -> None:
    first, second = (compare_arms(*evaluate(stage), PARAMS) for _ in range(2))
    assert first == second
