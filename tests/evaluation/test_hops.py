"""The last hop against its twins: the same pairs as the arms' comparison makes."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from kd_pipeline.errors import DataError
from kd_pipeline.evaluation.hops import compare_hops

SETTINGS: dict[str, Any] = {"num_samples": 500, "confidence_level": 0.95, "seed": 0}
ROLES = {"teacher": 1, "between": 1, "last": 3, "direct": 3, "alone": 3}


def make_predictions(right: dict[str, float]) -> pd.DataFrame:
    """The first share of the examples right, in every replicate; NLL falls with it."""
    rows = []
    for role, count in ROLES.items():
        for replicate in range(count):
            num_right = round(200 * right[role])
            rows.append(
                pd.DataFrame(
                    {
                        "role": role,
                        "replicate": replicate,
                        "example_id": np.arange(200) * 3,
                        "label": 1,
                        "predicted": np.where(np.arange(200) < num_right, 1, 0),
                        "nll": 1 - right[role],
                    }
                )
            )
    return pd.concat(rows, ignore_index=True)


def make_metrics() -> pd.DataFrame:
    rows = [(role, number) for role, count in ROLES.items() for number in range(count)]
    return pd.DataFrame(rows, columns=["role", "replicate"]).assign(data_known=True)


def compared(**right: float) -> dict[str, Any]:
    shares = dict.fromkeys(ROLES, 0.5) | right
    return compare_hops(
        make_predictions(shares), make_metrics(), last="last", twins=["alone", "direct"], **SETTINGS
    )


def test_gains_are_of_the_last_hop_over_each_twin() -> None:
    gains = compared(last=0.9, direct=0.8, alone=0.95)["gains"]
    assert list(gains) == ["over_alone", "over_direct"]
    assert gains["over_direct"]["accuracy"]["mean"] == pytest.approx(0.1)
    assert gains["over_direct"]["accuracy"]["wins"] == 3
    assert gains["over_direct"]["nll"]["mean"] == pytest.approx(-0.1)
    assert gains["over_alone"]["accuracy"]["mean"] == pytest.approx(-0.05)
    assert gains["over_alone"]["accuracy"]["wins"] == 0


def test_equals_are_not_told_apart() -> None:
    accuracy = compared(last=0.7, direct=0.7)["gains"]["over_direct"]["accuracy"]
    assert accuracy["mean"] == 0
    assert accuracy["ci95"] == [0, 0]
    assert accuracy["p_value"] == 1


def test_it_says_what_it_rests_on() -> None:
    told = compared()
    assert told["hops"] == list(ROLES)
    assert told["method"] == {
        "num_test_examples": 200,
        "num_replicates": 3,
        "num_bootstrap_samples": 500,
        "confidence_level": 0.95,
        "teacher_measured": True,
        "teacher_data_known": True,
    }


def test_nothing_is_known_of_a_teacher_that_could_not_be_measured() -> None:
    predictions, metrics = make_predictions(dict.fromkeys(ROLES, 0.5)), make_metrics()
    students = [table[table["role"] != "teacher"] for table in (predictions, metrics)]
    told = compare_hops(*students, last="last", twins=["alone"], **SETTINGS)
    assert told["method"]["teacher_measured"] is False
    assert told["method"]["teacher_data_known"] is False
    assert told["hops"] == ["between", "last", "direct", "alone"]


def test_a_measured_teacher_may_be_of_unknown_data() -> None:
    predictions = make_predictions(dict.fromkeys(ROLES, 0.5))
    metrics = make_metrics().assign(data_known=False)
    method = compare_hops(predictions, metrics, last="last", twins=["alone"], **SETTINGS)["method"]
    assert (method["teacher_measured"], method["teacher_data_known"]) == (True, False)


def test_a_missing_twin_is_named() -> None:
    predictions = make_predictions(dict.fromkeys(ROLES, 0.5))
    with pytest.raises(DataError, match="`hop_predictions` must hold other"):
        compare_hops(predictions, make_metrics(), last="last", twins=["other"], **SETTINGS)


def test_replicates_that_do_not_pair_are_refused() -> None:
    predictions = make_predictions(dict.fromkeys(ROLES, 0.5))
    fewer = predictions[~((predictions["role"] == "alone") & (predictions["replicate"] == 2))]
    with pytest.raises(DataError, match="same shape"):
        compare_hops(fewer, make_metrics(), last="last", twins=["alone"], **SETTINGS)
