"""The report says what was found: gains, nulls, losses, and what explains them away."""

from collections.abc import Callable
from typing import Any

import pytest

from kd_pipeline.evaluation.comparison import compare
from kd_pipeline.evaluation.report import markdown_report

Draw = Callable[..., Any]


def told(accuracy: dict[str, float], draw: Draw, **changes: Any) -> str:
    result = draw({"teacher": 0.99, "student_baseline": 0.9} | accuracy, **changes)
    return markdown_report(result.comparison, result.metrics)


def test_a_gain_is_stated_with_its_interval(draw: Draw) -> None:
    text = told({"student_kd": 0.95}, draw)
    assert "**Distillation helped**: +" in text
    assert "95 % interval +" in text
    assert "better in 5 of 5 replicates" in text
    assert "% of that" in text


def test_a_null_result_is_stated_as_one(draw: Draw) -> None:
    text = told({"student_kd": 0.9}, draw)
    assert "**No evidence that distilling helped or hurt**" in text
    assert "Distillation helped" not in text


def test_a_loss_is_stated_as_one(draw: Draw) -> None:
    assert "**Distillation hurt**: -" in told({"student_kd": 0.85}, draw)


def test_pseudo_labels_that_do_as_well_explain_the_gain(draw: Draw) -> None:
    text = told({"student_kd": 0.95, "student_pseudo": 0.95}, draw)
    assert "the gain in accuracy comes with any use of the teacher's labels" in text


def test_smoothing_that_does_as_well_needs_no_teacher(draw: Draw) -> None:
    text = told({"student_kd": 0.95, "student_smoothed": 0.95}, draw)
    assert "it uses no teacher" in text


def test_a_control_of_the_users_own_is_spoken_of_too(draw: Draw) -> None:
    text = told({"student_kd": 0.95, "mine": 0.95}, draw)
    assert "The control mine does as well within noise" in text


def test_a_worse_control_does_not_explain_and_a_better_one_is_preferred(draw: Draw) -> None:
    text = told({"student_kd": 0.94, "student_smoothed": 0.88, "student_pseudo": 0.98}, draw)
    assert "(student_smoothed) does worse" in text
    assert "(student_pseudo) does better" in text
    assert "prefer it" in text


def test_a_control_explains_no_gain_where_there_is_none(draw: Draw) -> None:
    text = told({"student_kd": 0.9, "student_pseudo": 0.9}, draw)
    assert "comes with any use" not in text
    assert "is within noise of it" in text


def test_no_share_of_a_gap_that_is_not_there(draw: Draw) -> None:
    text = told({"teacher": 0.9, "student_kd": 0.9}, draw)
    assert "The teacher is not shown to beat the baseline" in text
    assert "recovers" not in text


def test_what_it_rests_on(result: Any) -> None:
    text = markdown_report(result.comparison, result.metrics)
    for fact in (
        "600 test examples, read once",
        "5 replicate(s) per arm",
        "3 arm(s) were compared",
        "2 control(s)",
        "not corrected",
        "conditional on this split of the data and on this teacher",
        "figures/accuracy_figure.png",
        "| 66,000 |",
    ):
        assert fact in text
    assert "one replicate" not in text
    assert "nan" not in text.lower()


def test_one_replicate_is_warned_of(draw: Draw) -> None:
    text = told({"student_kd": 0.95}, draw, num_replicates=1)
    assert "nothing is known of other seeds" in text
    assert "paired bootstrap over test examples" in text


def test_a_teacher_of_unknown_data_is_warned_of(draw: Draw) -> None:
    said = "that it never saw these test images cannot be verified"
    assert said not in told({"student_kd": 0.95}, draw)
    assert said in told({"student_kd": 0.95}, draw, data_known=False)


def test_the_data_of_a_teacher_that_could_not_be_measured_are_unknown_too(result: Any) -> None:
    """The students learnt from it: what it has seen matters, measured or not."""
    predictions, metrics = (
        table[table["role"] != "teacher"] for table in (result.predictions, result.metrics)
    )
    comparison = compare(predictions, metrics, num_samples=100, confidence_level=0.95, seed=0)
    text = markdown_report(comparison, metrics)
    assert "that it never saw these test images cannot be verified" in text
    assert "logits were imported and do not cover the test set" in text


def test_without_a_distilled_arm_the_others_are_told(draw: Draw) -> None:
    text = told({"student_pseudo": 0.95}, draw)
    assert "The arm pseudo-labels (student_pseudo) beats hard labels" in text


def test_a_baseline_alone_is_not_compared(draw: Draw) -> None:
    assert "nothing to compare" in told({}, draw)


def test_another_level_is_named(draw: Draw) -> None:
    assert "99 % interval" in told({"student_kd": 0.95}, draw, confidence_level=0.99)


@pytest.mark.parametrize("column", ["model/parameters"])
def test_an_unknown_size_is_a_dash(result: Any, column: str) -> None:
    metrics = result.metrics.assign(**{column: None})
    assert "| teacher | - |" in markdown_report(result.comparison, metrics)
