"""Reading the test set: every row once, each student beside the role that it learnt from."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from kd_pipeline.data.dataset import LabelledImages
from kd_pipeline.errors import DataError
from kd_pipeline.evaluation.settings import EvaluationParams
from kd_pipeline.evaluation.test_set import read_test_set
from kd_pipeline.models.calibration import calibrate
from kd_pipeline.models.checkpoint import ModelCheckpoint, build_classifier
from kd_pipeline.soft_targets.imported import ImportedLogits
from kd_pipeline.soft_targets.settings import SoftTargetsParams

PARAMS = EvaluationParams(batch_size=6, device="cpu", num_calibration_bins=5)
EQUAL = SoftTargetsParams()

Changed = Callable[..., ModelCheckpoint]


def read(
    stage: Any, params: EvaluationParams = PARAMS, soft_targets: SoftTargetsParams = EQUAL
) -> tuple[pd.DataFrame, pd.DataFrame]:
    return read_test_set(stage.data, stage.teacher, stage.students, params, soft_targets)


def logits_of(checkpoint: ModelCheckpoint, data: LabelledImages, ids: Any) -> torch.Tensor:
    with torch.inference_mode():
        return build_classifier(checkpoint)(data.images.take(ids))


def test_every_test_row_is_read_once_by_every_model(stage: Any) -> None:
    """20 rows in batches of 6: a dropped last batch would lose two."""
    predictions, metrics = read(stage)
    for _, rows in predictions.groupby(["role", "replicate"]):
        assert rows["example_id"].tolist() == stage.data.ids("test").tolist()
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
    predictions, metrics = read(stage)
    checkpoint = stage.students["student_kd"][1]
    rows = predictions.query("role == 'student_kd' and replicate == 1")
    row = metrics.query("role == 'student_kd' and replicate == 1").iloc[0]
    logits = logits_of(checkpoint, stage.data, rows["example_id"].to_numpy())
    assert rows["predicted"].tolist() == logits.argmax(dim=1).tolist()
    labels = stage.data.labels_of(rows["example_id"].to_numpy()).numpy()
    assert rows["label"].tolist() == labels.tolist()
    assert row["test/errors"] == (rows["predicted"] != labels).sum()
    assert row["checkpoint"] == checkpoint.fingerprint
    assert row["architecture"] == 'mlp {"hidden": []}'
    assert row["model/parameters"] == 51
    assert row["cost/train_seconds"] == 0.5
    assert metrics["data_known"].all()


def test_the_batch_size_changes_nothing(stage: Any) -> None:
    small, whole = read(stage), read(stage, PARAMS.model_copy(update={"batch_size": 64}))
    pd.testing.assert_frame_equal(small[0], whole[0])
    pd.testing.assert_frame_equal(small[1], whole[1])


def test_each_student_is_beside_the_role_that_its_facts_name(chain: Any) -> None:
    _, metrics = read(chain)
    first = metrics.drop_duplicates("role").set_index("role")["learnt_from"]
    assert list(metrics.columns)[:4] == ["role", "replicate", "learnt_from", "checkpoint"]
    assert pd.isna(first["teacher"])
    assert first.drop("teacher").to_dict() == {
        "assistant": "teacher",
        "student_assisted": "assistant",
        "student_baseline": "labels",
    }


def test_agreement_is_with_the_role_learnt_from(chain: Any, changed: Changed) -> None:
    assistant = chain.students["assistant"][0]
    copy = changed(assistant, teacher=[assistant.fingerprint])
    students = {"assistant": [assistant], "copy": [copy]}
    along = read(chain._replace(students=students))[1].set_index("role")["test/teacher_agreement"]
    assert along["assistant"] < 1
    assert along["copy"] == 1
    untaught = {"assistant": [changed(assistant, teacher=[])]}
    alone = read(chain._replace(students=untaught))[1].set_index("role")["test/teacher_agreement"]
    assert alone["assistant"] == along["assistant"]


def test_a_role_of_several_models_teaches_as_their_average(
    staging: Callable[..., Any], changed: Changed
) -> None:
    stage = staging(num_replicates=3, num_members=2)
    members = stage.students["student_kd"]
    last = changed(members[0], teacher=[one.fingerprint for one in members])
    taught = stage._replace(students={"student_kd": members, "last": [last]})
    _, metrics = read(taught)
    ids = stage.data.ids("test")
    logits = [logits_of(member, stage.data, ids) for member in members]
    average = sum(logits[1:], logits[0]).argmax(dim=1)
    expected = (logits[0].argmax(dim=1) == average).float().mean()
    assert metrics.iloc[-1]["test/teacher_agreement"] == pytest.approx(float(expected))


def test_an_ensemble_is_one_model_under_its_first_members_fingerprint(
    staging: Callable[..., Any],
) -> None:
    stage = staging(num_members=3)
    predictions, metrics = read(stage)
    rows = predictions[predictions["role"] == "teacher"]
    members = [logits_of(one, stage.data, rows["example_id"]) for one in stage.teacher]
    mean = torch.stack(members).mean(dim=0).softmax(dim=1)
    np.testing.assert_allclose(rows["confidence"], mean.max(dim=1).values, rtol=1e-5)
    (row,) = metrics[metrics["role"] == "teacher"].to_dict("records")
    assert row["checkpoint"] == stage.teacher[0].fingerprint
    assert row["model/parameters"] == 3 * 51
    assert row["test/teacher_agreement"] == 1.0


def test_an_ensemble_is_averaged_as_for_the_students(staging: Callable[..., Any]) -> None:
    stage = staging(num_members=2)
    average = SoftTargetsParams(ensemble_average="arithmetic", member_weights=(0.25, 0.75))
    predictions, _ = read(stage, soft_targets=average)
    rows = predictions[predictions["role"] == "teacher"]
    first, second = (
        logits_of(one, stage.data, rows["example_id"]).softmax(dim=1) for one in stage.teacher
    )
    mean = 0.25 * first + 0.75 * second
    np.testing.assert_allclose(rows["confidence"], mean.max(dim=1).values, rtol=1e-5)


def with_imported_teacher(stage: Any, changed: Changed, *roles: str) -> Any:
    """Logits computed elsewhere, for the rows of these roles only."""
    ids = np.sort(np.concatenate([stage.data.ids(role) for role in roles]))
    logits = logits_of(stage.teacher[0], stage.data, ids).numpy()
    teacher = ImportedLogits(ids, logits, stage.data.images.class_names)
    taught = [changed(one, teacher=[teacher.fingerprint]) for one in stage.students["student_kd"]]
    return stage._replace(teacher=[teacher], students={**stage.students, "student_kd": taught})


def test_imported_logits_of_the_test_set_are_measured_like_a_model(
    stage: Any, changed: Changed
) -> None:
    of_model, _ = read(stage)
    imported, metrics = read(with_imported_teacher(stage, changed, "test", "transfer"))
    columns = ["predicted", "confidence", "nll"]
    pd.testing.assert_frame_equal(imported[columns], of_model[columns])
    assert metrics["test/teacher_agreement"].notna().all()
    assert metrics["data_known"].tolist() == [False, True, True, True, True]
    assert math.isnan(metrics.loc[0, "model/parameters"])


def test_imported_logits_without_the_test_set_leave_the_teacher_out(
    stage: Any, changed: Changed, caplog: pytest.LogCaptureFixture
) -> None:
    predictions, metrics = read(with_imported_teacher(stage, changed, "transfer"))
    assert "do not cover the test set: it is not measured" in caplog.text
    assert set(predictions["role"]) == set(metrics["role"]) == {"student_baseline", "student_kd"}
    assert metrics["test/teacher_agreement"].isna().all()
    assert metrics["learnt_from"].tolist() == ["labels"] * 2 + ["teacher"] * 2


NUM_VALIDATION = 9


def validated(stage: Any) -> Any:
    """The first rows of the transfer set are validation, 9 of them with labels."""
    splits = stage.data.splits.copy()
    first = splits.index[splits["role"] == "transfer"][: NUM_VALIDATION + 1]
    splits.loc[first, ["role", "for_student"]] = ["validation", False]
    examples = stage.data.examples.copy()
    without = splits.loc[first[3], "example_id"]
    examples.loc[examples["example_id"] == without, ["label", "class_name"]] = pd.NA
    return stage._replace(data=LabelledImages(stage.data.images, examples, splits))


def test_a_temperature_per_model_is_fitted_on_the_labelled_validation_rows(stage: Any) -> None:
    stage = validated(stage)
    predictions, metrics = read(stage)
    ids, labels = stage.data.labelled("validation")
    assert metrics["calibration/examples"].tolist() == [NUM_VALIDATION] * 5
    checkpoint = stage.students["student_kd"][1]
    temperature = calibrate(logits_of(checkpoint, stage.data, ids), labels).temperature
    row = metrics.iloc[-1]
    assert row["calibration/temperature"] == pytest.approx(temperature)
    rows = predictions.query("role == 'student_kd' and replicate == 1")
    test_logits = logits_of(checkpoint, stage.data, stage.data.ids("test")).double()
    test_labels = stage.data.labels_of(stage.data.ids("test"))
    expected = torch.nn.functional.cross_entropy(
        test_logits / temperature, test_labels, reduction="none"
    )
    np.testing.assert_allclose(rows["nll_calibrated"], expected, rtol=1e-5)
    assert row["test/nll_calibrated"] == pytest.approx(expected.mean().item(), rel=1e-5)


def test_calibration_changes_nothing_else(stage: Any) -> None:
    plain, calibrated = read(stage), read(validated(stage))
    pd.testing.assert_frame_equal(plain[0], calibrated[0].drop(columns="nll_calibrated"))
    others = [column for column in plain[1] if "calibrat" not in column]
    pd.testing.assert_frame_equal(plain[1][others], calibrated[1][others])
    assert plain[1][[c for c in plain[1] if "calibrat" in c]].isna().all(axis=None)


def test_the_average_of_an_ensemble_is_calibrated_as_one_model(staging: Callable[..., Any]) -> None:
    stage = validated(staging(num_members=2))
    _, metrics = read(stage)
    ids, labels = stage.data.labelled("validation")
    mean = torch.stack([logits_of(one, stage.data, ids) for one in stage.teacher]).mean(dim=0)
    found = metrics.loc[0, "calibration/temperature"]
    assert found == pytest.approx(calibrate(mean, labels).temperature, rel=1e-4)


@pytest.mark.parametrize(("roles", "known"), [(("test", "validation"), True), (("test",), False)])
def test_imported_logits_are_calibrated_where_they_cover_validation(
    stage: Any, changed: Changed, roles: tuple[str, ...], known: bool
) -> None:
    _, metrics = read(with_imported_teacher(validated(stage), changed, *roles))
    by_role = metrics.groupby("role")["calibration/temperature"].first()
    assert pd.notna(by_role["teacher"]) is known
    assert pd.notna(by_role["student_kd"])


def test_a_test_row_without_label_is_refused(stage: Any) -> None:
    stage.data.examples.loc[1, "label"] = pd.NA
    with pytest.raises(DataError, match="every test example must have a label, got 1 without"):
        read(stage)


def test_splits_without_test_rows_are_refused(stage: Any) -> None:
    splits = stage.data.splits[stage.data.splits["role"] != "test"]
    data = LabelledImages(stage.data.images, stage.data.examples, splits)
    with pytest.raises(DataError, match="must have rows of role test, got none"):
        read(stage._replace(data=data))
