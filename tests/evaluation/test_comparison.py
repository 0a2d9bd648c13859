"""comparison.json: its shape, hand-worked values, what is refused."""

import json
from typing import Any

import numpy as np
import pandas as pd
import pytest

from kd_pipeline.errors import DataError
from kd_pipeline.evaluation.comparison import compare
from kd_pipeline.evaluation.settings import EvaluationParams
from kd_pipeline.evaluation.significance import holm

EXAMPLES = 40
RUN = {"group": "g", "env": "base"}
PARAMS = EvaluationParams(num_bootstrap_samples=300)
SOURCES = {"teacher": None, "student_baseline": "labels", "student_assisted": "assistant"}


def drawn(wrong: dict[str, list[int]]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Each role's number of wrong examples per replicate; the first ones are the wrong ones."""
    tables, rows = [], []
    for role, counts in wrong.items():
        for replicate, count in enumerate(counts):
            predicted = np.zeros(EXAMPLES, dtype=int)
            predicted[:count] = 1
            tables.append(
                pd.DataFrame(
                    {
                        "role": role,
                        "replicate": replicate,
                        "example_id": np.arange(EXAMPLES),
                        "label": 0,
                        "predicted": predicted,
                        "nll": 0.1 + predicted,
                        "nll_calibrated": 0.1 + predicted / 2,
                    }
                )
            )
            rows.append(
                {
                    "role": role,
                    "replicate": replicate,
                    "learnt_from": SOURCES.get(role, "teacher"),
                    "architecture": "mlp",
                    "model/parameters": 10,
                    "model/macs": None,
                    "data_known": True,
                    "test/accuracy": 1 - count / EXAMPLES,
                    "test/top5_accuracy": 1.0,
                    "test/nll": 0.1 + count / EXAMPLES,
                    "test/nll_calibrated": 0.1 + count / EXAMPLES / 2,
                    "test/ece": 0.05,
                    "test/ece_calibrated": 0.04,
                    "calibration/temperature": 2.0,
                    "calibration/examples": 10,
                    "cost/train_seconds": 30.0 if role == "teacher" else 2.0 + replicate,
                    "cost/caching_seconds": 0.0 if role == "student_baseline" else 1.0,
                    "test/errors": count,
                    "test/teacher_agreement": 0.9,
                }
            )
    return pd.concat(tables, ignore_index=True), pd.DataFrame(rows)


USUAL = {
    "teacher": [0],
    "student_kd": [4, 5, 6],
    "student_baseline": [14, 15, 16],
    "student_pseudo": [4, 6, 5],
}


def compared(wrong: dict[str, list[int]] = USUAL, *, level: float = 0.95) -> dict[str, Any]:
    params = PARAMS.model_copy(update={"confidence_level": level})
    return compare(*drawn(wrong), params, RUN, num_training_examples=100)


def test_has_the_shape_that_others_rely_on() -> None:
    comparison = compared()
    assert list(comparison)[:5] == ["group", "env", "arms", "teacher", "gains"]
    assert (comparison["group"], comparison["env"]) == ("g", "base")
    assert list(comparison["arms"]) == ["student_kd", "student_baseline", "student_pseudo"]
    for spreads in [*comparison["arms"].values(), comparison["teacher"]]:
        assert set(spreads) == {
            "accuracy", "top5_accuracy", "nll", "ece", "errors", "teacher_agreement",
            "nll_calibrated", "ece_calibrated", "calibration_temperature", "calibration_examples",
        }  # fmt: skip
        assert all(set(spread) == {"mean", "std", "values"} for spread in spreads.values())
    assert list(comparison["gains"]) == ["student_kd", "student_pseudo"]
    for gain in comparison["gains"].values():
        assert set(gain) == {"accuracy", "nll", "nll_calibrated", "gap_recovered", "mcnemar"}
        of_a_difference = {"mean", "ci95", "p_value", "wins", "replicates", "smallest_detectable"}
        assert set(gain["nll"]) == set(gain["nll_calibrated"]) == of_a_difference
        of_the_family = of_a_difference | {"p_value_holm", "num_comparisons"}
        assert set(gain["accuracy"]) == of_the_family
        assert len(gain["mcnemar"]) == 3
    assert list(comparison["distilled_over"]) == ["student_pseudo"]
    assert comparison["method"]["num_comparisons"] == 2
    assert comparison["method"]["num_test_examples"] == EXAMPLES
    assert comparison["method"]["num_training_examples"] == 100


def test_matches_values_worked_by_hand() -> None:
    comparison = compared()
    errors = comparison["arms"]["student_kd"]["errors"]
    assert errors == {"mean": 5.0, "std": 1.0, "values": [4, 5, 6]}
    gain = comparison["gains"]["student_kd"]
    assert gain["accuracy"]["mean"] == pytest.approx(10 / EXAMPLES)
    assert gain["accuracy"]["wins"] == gain["nll"]["wins"] == 3
    assert gain["nll"]["mean"] == pytest.approx(-10 / EXAMPLES)
    assert comparison["teacher_gap"]["accuracy"]["mean"] == pytest.approx(15 / EXAMPLES)
    assert gain["gap_recovered"] == pytest.approx(10 / 15)


def test_replicates_are_paired_by_their_number() -> None:
    """Each is ahead of its own counterpart; crossed, one of the two would be behind."""
    wrong = {"teacher": [0], "student_kd": [4, 10], "student_baseline": [5, 11]}
    predictions, metrics = drawn(wrong)
    theirs = predictions["role"] == "student_baseline"
    listed = pd.concat([predictions[~theirs], predictions[theirs][::-1]])
    gain = compare(listed, metrics, PARAMS, RUN, num_training_examples=100)["gains"]["student_kd"][
        "accuracy"
    ]
    assert (gain["wins"], gain["replicates"]) == (2, 2)
    assert gain["mean"] == pytest.approx(1 / EXAMPLES)


def test_a_teacher_that_cannot_be_measured_is_null_and_the_rest_stands() -> None:
    whole, without = compared(USUAL), compared({k: v for k, v in USUAL.items() if k != "teacher"})
    assert without["teacher"] is None
    assert without["teacher_gap"] is None
    assert without["teacher"] is None
    assert whole["teacher"] is not None
    for arm, gain in without["gains"].items():
        assert gain == {**whole["gains"][arm], "gap_recovered": None}
    assert without["arms"] == whole["arms"]


def test_no_gap_is_recovered_from_a_teacher_that_is_no_better() -> None:
    comparison = compared({**USUAL, "teacher": [15]})
    assert comparison["gains"]["student_kd"]["gap_recovered"] is None


def test_is_strict_json_also_with_one_replicate_and_unknown_values() -> None:
    predictions, metrics = drawn({role: counts[:1] for role, counts in USUAL.items()})
    metrics.loc[metrics["role"] == "teacher", "test/teacher_agreement"] = np.nan
    comparison = compare(predictions, metrics, PARAMS, RUN, num_training_examples=100)
    text = json.dumps(comparison, allow_nan=False)
    assert json.loads(text) == comparison
    assert comparison["arms"]["student_kd"]["accuracy"]["std"] is None
    assert comparison["teacher"]["teacher_agreement"]["mean"] is None


def test_another_level_is_named_beside_the_interval() -> None:
    usual, strict = compared(), compared(level=0.99)
    assert "confidence_level" not in usual["gains"]["student_kd"]["accuracy"]
    gain = strict["gains"]["student_kd"]["accuracy"]
    assert gain["confidence_level"] == 0.99
    assert gain["ci95"][0] < usual["gains"]["student_kd"]["accuracy"]["ci95"][0]


def test_the_order_of_rows_does_not_matter() -> None:
    predictions, metrics = drawn(USUAL)
    once, again = (
        compare(rows, metrics, PARAMS, RUN, num_training_examples=100)
        for rows in (predictions, predictions.sample(frac=1, random_state=0))
    )
    assert once["gains"] == again["gains"]
    assert once["arms"] == again["arms"]


def test_students_that_others_learnt_from_are_measured_and_not_paired() -> None:
    """Their number of replicates may differ."""
    comparison = compared(
        {
            "teacher": [0],
            "assistant": [3],
            "student_assisted": [4, 5, 6],
            "student_kd": [8, 9, 10],
            "student_baseline": [14, 15, 16],
        }
    )
    assert comparison["learnt_from"] == {
        "assistant": "teacher",
        "student_assisted": "assistant",
        "student_kd": "teacher",
        "student_baseline": "labels",
    }
    assert comparison["intermediate"] == ["assistant"]
    assert comparison["arms"]["assistant"]["errors"]["values"] == [3]
    assert list(comparison["gains"]) == ["student_assisted", "student_kd"]
    assert comparison["distilled"] == "student_assisted"
    over = comparison["distilled_over"]["student_kd"]
    assert over["accuracy"]["mean"] == pytest.approx(4 / EXAMPLES)
    assert comparison["models"]["assistant"] == {
        "architecture": "mlp", "parameters": 10, "macs": None,
    }  # fmt: skip


def test_pseudo_labels_are_a_control_though_a_teacher_made_them() -> None:
    comparison = compared({k: v for k, v in USUAL.items() if k != "student_kd"})
    assert comparison["learnt_from"]["student_pseudo"] == "teacher"
    assert comparison["distilled"] is None
    assert comparison["distilled_over"] == {}


def test_the_p_values_of_the_gains_are_one_family() -> None:
    wrong = {**USUAL, "student_smoothed": [13, 16, 15]}
    gains = compared(wrong)["gains"]
    plain = {arm: gain["accuracy"]["p_value"] for arm, gain in gains.items()}
    adjusted = {arm: gain["accuracy"]["p_value_holm"] for arm, gain in gains.items()}
    assert adjusted == pytest.approx(holm(plain))
    assert adjusted["student_kd"] == pytest.approx(3 * plain["student_kd"])
    assert adjusted["student_smoothed"] == plain["student_smoothed"]
    assert {gain["accuracy"]["num_comparisons"] for gain in gains.values()} == {3}
    assert all("num_comparisons" not in gain["nll"] for gain in gains.values())


def test_discordant_images_are_counted_per_replicate() -> None:
    """The arm errs on the first 4 images, the baseline on the first 14."""
    tests = compared()["gains"]["student_kd"]["mcnemar"]
    assert [(test["arm_only"], test["baseline_only"]) for test in tests] == [(10, 0)] * 3
    assert tests[0]["p_value"] == pytest.approx(2 / 2**10)


def test_calibrated_nll_is_compared_in_pairs_where_both_are_calibrated() -> None:
    gain = compared()["gains"]["student_kd"]
    assert gain["nll_calibrated"]["mean"] == pytest.approx(-10 / EXAMPLES / 2)
    predictions, metrics = drawn(USUAL)
    predictions.loc[predictions["role"] == "teacher", "nll_calibrated"] = np.nan
    comparison = compare(predictions, metrics, PARAMS, RUN, num_training_examples=100)
    assert "nll_calibrated" not in comparison["teacher_gap"]
    assert comparison["gains"]["student_kd"]["nll_calibrated"] == gain["nll_calibrated"]
    comparison = compare(
        predictions.drop(columns="nll_calibrated"), metrics, PARAMS, RUN, num_training_examples=100
    )
    assert "nll_calibrated" not in comparison["gains"]["student_kd"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"teacher": [0], "student_kd": [4]}, "must hold student_baseline"),
        ({**USUAL, "student_kd": [4, 5]}, "must have the same shape"),
        ({**USUAL, "student_kd": [4]}, "must have the same shape"),
    ],
)
def test_refuses_what_cannot_be_compared(wrong: dict[str, list[int]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        compared(wrong)


def test_refuses_other_examples() -> None:
    predictions, metrics = drawn(USUAL)
    gone = (predictions["role"] == "student_kd") & (predictions["replicate"] == 1)
    short = predictions[~(gone & (predictions["example_id"] == 3))]
    with pytest.raises(DataError, match="must be finite"):
        compare(short, metrics, PARAMS, RUN, num_training_examples=100)


def test_refuses_as_many_other_examples() -> None:
    predictions, metrics = drawn(USUAL)
    other = (predictions["role"] == "student_kd") & (predictions["example_id"] == 3)
    predictions.loc[other, "example_id"] = EXAMPLES
    with pytest.raises(DataError, match="must be finite"):
        compare(predictions, metrics, PARAMS, RUN, num_training_examples=100)


def test_runs_with_one_test_set_have_one_fingerprint_of_its_ids() -> None:
    predictions, metrics = drawn(USUAL)

    def fingerprint(rows: pd.DataFrame) -> str:
        compared = compare(rows, metrics, PARAMS, RUN, num_training_examples=100)
        return str(compared["method"]["test_ids_fingerprint"])

    shuffled = predictions.sample(frac=1, random_state=0)
    assert fingerprint(shuffled) == fingerprint(predictions)
    moved = predictions.assign(example_id=predictions["example_id"] + 1)
    assert fingerprint(moved) != fingerprint(predictions)
