"""The report states what was found: gains, nulls, losses, and what explains them away."""

from collections.abc import Callable
from typing import Any

import pytest

from kd_pipeline.evaluation.comparison import compare
from kd_pipeline.evaluation.report import markdown_report
from kd_pipeline.evaluation.settings import EvaluationParams
from kd_pipeline.evaluation.terminal import arms_table
from kd_pipeline.evaluation.verdict import verdict

PARAMS = EvaluationParams(num_bootstrap_samples=100)

Draw = Callable[..., Any]


def reported(accuracy: dict[str, float], draw: Draw, **changes: Any) -> str:
    result = draw({"teacher": 0.99, "student_baseline": 0.9} | accuracy, **changes)
    return markdown_report(result.comparison)


def test_a_gain_is_stated_with_its_interval(draw: Draw) -> None:
    text = reported({"student_kd": 0.95}, draw)
    assert "**Distillation helped**: +" in text
    assert "95 % interval +" in text
    assert "better in 5 of 5 replicates" in text
    assert "% of that" in text


def test_a_null_result_is_stated_as_one(draw: Draw) -> None:
    text = reported({"student_kd": 0.9}, draw)
    assert "**No evidence that distillation helped or hurt**" in text
    assert "Distillation helped" not in text


def test_a_loss_is_stated_as_one(draw: Draw) -> None:
    assert "**Distillation hurt**: -" in reported({"student_kd": 0.85}, draw)


def test_pseudo_labels_that_do_as_well_explain_the_gain(draw: Draw) -> None:
    text = reported({"student_kd": 0.95, "student_pseudo": 0.95}, draw)
    assert "the gain in accuracy comes with any use of the teacher's labels" in text


def test_smoothing_that_does_as_well_needs_no_teacher(draw: Draw) -> None:
    text = reported({"student_kd": 0.95, "student_smoothed": 0.95}, draw)
    assert "it uses no teacher" in text


def test_a_control_of_the_users_own_is_reported_too(draw: Draw) -> None:
    text = reported({"student_kd": 0.95, "mine": 0.95}, draw)
    assert "The control mine does as well within noise" in text


def test_another_loss_that_does_as_well_is_no_control_without_soft_targets(result: Any) -> None:
    tied = {"mean": 0.0, "ci95": [-0.02, 0.02], "p_value": 1.0, "smallest_detectable": 0.03,
            "wins": 1, "replicates": 3}  # fmt: skip
    better = {**tied, "mean": -0.1, "ci95": [-0.2, -0.01], "p_value": 0.01}
    comparison = with_gain(result, mean=0.05, ci95=[0.03, 0.07], p_value=0.001, p_value_holm=0.002)
    comparison |= {
        "distilled_over": {"student_dkd": {"accuracy": tied, "nll": better}},
        "learnt_from": {**comparison["learnt_from"], "student_dkd": "teacher"},
    }
    text = " ".join(verdict(comparison))
    assert "that the gain in accuracy depends on the loss or its settings is not shown" in text
    assert "In NLL the distilled student is better than it" in text
    assert "soft targets" not in text.split("student_dkd")[1]


def test_a_worse_control_does_not_explain_and_a_better_one_is_preferred(draw: Draw) -> None:
    text = reported({"student_kd": 0.94, "student_smoothed": 0.88, "student_pseudo": 0.98}, draw)
    assert "(student_smoothed) does worse" in text
    assert "(student_pseudo) does better" in text
    assert "prefer it" in text


def test_a_control_explains_no_gain_where_there_is_none(draw: Draw) -> None:
    text = reported({"student_kd": 0.9, "student_pseudo": 0.9}, draw)
    assert "comes with any use" not in text
    assert "is within noise of it" in text


def test_no_share_of_a_gap_that_is_not_there(draw: Draw) -> None:
    text = reported({"teacher": 0.9, "student_kd": 0.9}, draw)
    assert "The teacher is not shown to beat the baseline" in text
    assert "recovers" not in text
    text = reported({"teacher": 0.5, "student_kd": 0.9}, draw)
    assert "The teacher does worse than the baseline" in text


def test_what_it_rests_on(result: Any) -> None:
    text = markdown_report(result.comparison)
    for fact in (
        "600 test examples, read once",
        "5 replicate(s) per arm",
        "3 arm(s) were compared",
        "2 control(s)",
        "their gains in accuracy are one family of tests",
        "p and the intervals are not corrected",
        "conditional on this split of the data and on this teacher",
        "figures/accuracy_figure.png",
        "| 66,000 |",
    ):
        assert fact in text
    assert "one replicate" not in text
    assert "nan" not in text.lower()


def with_gain(result: Any, **changes: Any) -> dict[str, Any]:
    """The comparison with another gain of the distilled arm in accuracy."""
    gain = result.comparison["gains"]["student_kd"]
    changed = {**gain, "accuracy": gain["accuracy"] | changes}
    return {
        **result.comparison,
        "gains": result.comparison["gains"] | {"student_kd": changed},
    }


def test_a_gain_that_holm_does_not_leave_is_not_shown(result: Any) -> None:
    found = {"mean": 0.02, "ci95": [0.001, 0.039], "p_value": 0.04}
    text = markdown_report(with_gain(result, **found, p_value_holm=0.12, smallest_detectable=0.03))
    assert "**No evidence that distillation helped or hurt**: +2.00 points" in text
    assert "By itself it would be shown (p = 0.040), but it is one of 3 gains" in text
    assert "p = 0.120 after Holm's adjustment" in text
    assert "could have shown is 3.00 points (power 80 %, level 5 % / 3 arms)" in text
    text = markdown_report(with_gain(result, **found, p_value_holm=0.049))
    assert "**Distillation helped**: +2.00 points" in text
    assert "Holm's adjustment" not in text


def test_beside_every_null_result_is_what_would_have_been_shown(draw: Draw) -> None:
    arms = {"student_kd": 0.9, "student_smoothed": 0.9, "student_pseudo": 0.9}
    text = reported({"teacher": 0.9, **arms}, draw)
    could = "The smallest difference that this run could have shown is "
    verdict = text.split("## Arms")[0].split("\n\n")
    nulls = [line for line in verdict if "No evidence" in line or "not shown" in line
             or "within noise" in line]  # fmt: skip
    assert len(nulls) >= 4
    assert all(could in line for line in nulls)
    gained = reported({"student_kd": 0.95}, draw).split("## Arms")[0].split("\n\n")
    assert all(could not in line for line in gained if "helped" in line)


def test_discordant_images_of_each_replicate_are_tabled(result: Any) -> None:
    text = markdown_report(result.comparison).split("## Replicate by replicate")[1]
    test = result.comparison["gains"]["student_kd"]["mcnemar"][4]
    assert "| replicate | distilled (student_kd) | label smoothing" in text
    assert f"| 4 | {test['arm_only']} / {test['baseline_only']} (p " in text


def test_costs_are_tabled(result: Any) -> None:
    text = markdown_report(result.comparison).split("## Cost")[1]
    assert "| distilled (student_kd) | 40.0 | 1.5 | 4.0 | 45.5 |" in text
    assert "| hard labels (student_baseline) | 0.0 | 0.0 | 4.0 | 4.0 |" in text


def in_nll(result: Any, raw: list[float], calibrated: list[float]) -> str:
    """The section on calibration with these intervals of the two differences."""
    gain = result.comparison["gains"]["student_kd"]
    changed = {
        key: gain[key] | {"mean": sum(ci95) / 2, "ci95": ci95, "smallest_detectable": 0.05}
        for key, ci95 in (("nll", raw), ("nll_calibrated", calibrated))
    }
    gains = result.comparison["gains"] | {"student_kd": gain | changed}
    text = markdown_report({**result.comparison, "gains": gains})
    return text.split("## Calibration")[1].split("##")[0]


BETTER, SAME, WORSE = [-0.3, -0.1], [-0.1, 0.1], [0.1, 0.3]


@pytest.mark.parametrize(
    ("raw", "calibrated", "found"),
    [
        (BETTER, BETTER, "**The distilled student's advantage in NLL survives**"),
        (BETTER, SAME, "**That the distilled student's advantage in NLL survives is not shown**"),
        (BETTER, WORSE, "advantage in NLL turns into a disadvantage**"),
        (SAME, BETTER, "NLL becomes better than that of hard labels**"),
        (SAME, SAME, "NLL is not shown to differ from that of hard labels**"),
        (WORSE, WORSE, "NLL is worse than that of hard labels**"),
    ],
)
def test_what_one_temperature_leaves_of_the_advantage_is_stated(
    result: Any, raw: list[float], calibrated: list[float], found: str
) -> None:
    text = in_nll(result, raw, calibrated)
    assert found in text
    assert ("could have shown is 0.050 nats" in text) is (calibrated == SAME)
    assert "ECE goes from 0." in text
    assert "to 0.010 for distilled and from" in text
    assert "of 100 labelled validation examples" in text
    assert "| arm | NLL | NLL, calibrated | ECE | ECE, calibrated | temperature |" in text
    assert "end of the range" not in text


def test_a_temperature_that_validation_does_not_determine_is_named(result: Any) -> None:
    arms = result.comparison["arms"]
    temperatures = arms["student_kd"]["calibration_temperature"] | {"values": [1.0, 0.05]}
    changed = arms["student_kd"] | {"calibration_temperature": temperatures}
    text = markdown_report({**result.comparison, "arms": arms | {"student_kd": changed}})
    assert (
        "end of the range searched, so that these examples do not determine it, of: distilled."
        in (text)
    )


def test_a_temperature_that_raises_the_nll_on_the_test_set_is_named(result: Any) -> None:
    arms = result.comparison["arms"]
    higher = {"mean": arms["student_kd"]["nll"]["mean"] + 0.01, "std": None}
    changed = arms["student_kd"] | {"nll_calibrated": higher}
    raised = "It raises the NLL on the test set of: distilled."
    assert raised in markdown_report({**result.comparison, "arms": arms | {"student_kd": changed}})
    assert "It raises" not in markdown_report(result.comparison)


def test_without_labels_in_validation_nothing_is_calibrated(draw: Draw) -> None:
    text = reported({"student_kd": 0.95}, draw, calibrated=False)
    assert "No model was calibrated: validation has no labelled example." in text
    assert "nan" not in text.lower()


@pytest.mark.parametrize(("num_classes", "shown"), [(10, True), (9, False)])
def test_the_top_5_is_shown_where_there_are_10_classes_or_more(
    draw: Draw, num_classes: int, shown: bool
) -> None:
    drawn = draw(num_classes=num_classes)
    for text in (markdown_report(drawn.comparison), arms_table(drawn.comparison, None)):
        assert ("top-5 %" in text) is shown
        assert ("100.00" in text) is shown
    assert drawn.comparison["arms"]["student_kd"]["top5_accuracy"]["mean"] == 1.0


def test_one_replicate_is_warned_of(draw: Draw) -> None:
    text = reported({"student_kd": 0.95}, draw, num_replicates=1)
    assert "nothing is known of other seeds" in text
    assert "paired bootstrap over test examples" in text


def needing(needed: int, result: Any) -> dict[str, Any]:
    """The comparison with a gain whose interval is too wide."""
    gain = result.comparison["gains"]["student_kd"]
    wide = {**gain["accuracy"], "replicates_needed": needed, "ci95": [-0.15, 0.25]}
    gains = result.comparison["gains"] | {"student_kd": {**gain, "accuracy": wide}}
    return {**result.comparison, "gains": gains}


def test_how_many_replicates_would_do_is_stated_where_they_are_too_few(result: Any) -> None:
    for text in (markdown_report(needing(12, result)), arms_table(needing(12, result), None)):
        assert "is 40.0 points wide: more replicates are what is missing" in text
        assert "If their spread stays as it is, `student.num_replicates: 12` would do" in text
        assert "instead of 5" in text
    for text in (markdown_report(result.comparison), arms_table(result.comparison, None)):
        assert "missing" not in text


def test_a_teacher_of_unknown_data_is_warned_of(draw: Draw) -> None:
    warning = "that these test images are not among them cannot be verified"
    assert warning not in reported({"student_kd": 0.95}, draw)
    assert warning in reported({"student_kd": 0.95}, draw, data_known=False)


def test_the_data_of_a_teacher_that_could_not_be_measured_are_unknown_too(result: Any) -> None:
    """The students learnt from it: what it has seen matters, measured or not."""
    predictions, metrics = (
        table[table["role"] != "teacher"] for table in (result.predictions, result.metrics)
    )
    comparison = compare(
        predictions, metrics, PARAMS, {"group": None, "env": None}, num_training_examples=100
    )
    text = markdown_report(comparison)
    assert "that these test images are not among them cannot be verified" in text
    assert "logits were imported and do not cover the test set" in text


def test_without_a_distilled_arm_the_others_are_reported(draw: Draw) -> None:
    text = reported({"student_pseudo": 0.95}, draw)
    assert "**The arm pseudo-labels (student_pseudo) helped**" in text


def test_a_baseline_alone_is_not_compared(draw: Draw) -> None:
    assert "nothing to compare" in reported({}, draw)


def test_another_level_is_named(draw: Draw) -> None:
    assert "99 % interval" in reported({"student_kd": 0.95}, draw, confidence_level=0.99)


def test_an_unknown_size_is_a_dash(result: Any) -> None:
    models = {"teacher": {"architecture": "mlp", "parameters": None, "macs": None}}
    comparison = {**result.comparison, "models": result.comparison["models"] | models}
    assert "| teacher | - |" in markdown_report(comparison)


CHAIN = {"assistant": 0.96, "student_assisted": 0.94, "student_kd": 0.94}


def chained(draw: Draw, **accuracy: float) -> str:
    return reported(CHAIN | accuracy, draw, learnt_from={"student_assisted": "assistant"})


@pytest.mark.parametrize(
    ("direct", "found"),
    [
        (0.90, "**Learning through assistant helped**: +"),
        (0.98, "**Learning through assistant hurt**: -"),
        (0.94, "**No evidence that learning through assistant helped or hurt**: "),
    ],
)
def test_a_student_between_is_judged_by_the_student_taught_directly(
    draw: Draw, direct: float, found: str
) -> None:
    text = chained(draw, student_kd=direct)
    assert text.count(found) == 1
    (verdict,) = [line for line in text.splitlines() if found in line]
    assert "points of accuracy over being taught by the teacher directly (student_kd)" in verdict
    assert "of 5 replicates" in verdict
    assert "The control" not in text
    assert "**Distillation helped**" in text


def test_students_between_are_tabled_and_their_part_is_stated(draw: Draw) -> None:
    text = chained(draw)
    assert "| arm | learnt from | architecture | parameters | MACs | accuracy % |" in text
    assert '| assistant | teacher | mlp {"hidden": [32]} | 2,410 | 2,368 | 95.' in text
    assert "| student_assisted) | assistant |" in text.replace(
        "distilled through an assistant (", ""
    )
    assert "| hard labels (student_baseline) | labels |" in text
    assert "So it is on assistant, which other students learnt from" in text
    assert "2 arm(s) were compared" in text


def test_without_students_between_there_is_no_column_for_them(result: Any) -> None:
    text = markdown_report(result.comparison)
    assert "| arm | parameters | accuracy % | top-5 % | errors | NLL |" in text
    assert "learnt from |" not in text
