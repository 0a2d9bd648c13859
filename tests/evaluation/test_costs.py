"""What a student costs: sums worked by hand, and parts that are not on record."""

from typing import Any

import pandas as pd
import pytest

from kd_pipeline.evaluation.costs import student_costs

SOURCES = {
    "assistant": "teacher",
    "student_assisted": "assistant",
    "student_kd": "teacher",
    "student_baseline": "labels",
}
SECONDS: dict[str, tuple[list[float | None], float | None]] = {
    "teacher": ([100.0], None),
    "assistant": ([30.0, 34.0], 5.0),
    "student_assisted": ([2.0, 4.0], 6.0),
    "student_kd": ([1.0, 2.0], 5.0),
    "student_baseline": ([1.0, 1.5], 0.0),
}


def measured(**changes: tuple[list[float | None], float | None]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"role": role, "cost/train_seconds": seconds, "cost/caching_seconds": caching}
            for role, (replicates, caching) in (SECONDS | changes).items()
            for seconds in replicates
        ]
    )


def costs(metrics: pd.DataFrame) -> dict[str, tuple[Any, ...]]:
    return {role: tuple(cost.values()) for role, cost in student_costs(metrics, SOURCES).items()}


def test_match_sums_worked_by_hand() -> None:
    """Both replicates of the assistant teach, and each rests on the teacher's one cache."""
    assert costs(measured()) == {
        "assistant": (100.0, 5.0, 32.0, 137.0),
        "student_assisted": (164.0, 11.0, 3.0, 178.0),
        "student_kd": (100.0, 5.0, 1.5, 106.5),
        "student_baseline": (0.0, 0.0, 1.25, 1.25),
    }


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"teacher": ([None], None)}, (None, 5.0, 1.5, None)),
        ({"student_kd": ([1.0, 2.0], None)}, (100.0, None, 1.5, None)),
        ({"student_kd": ([None, None], 5.0)}, (100.0, 5.0, None, None)),
    ],
)
def test_what_is_not_on_record_is_null_and_so_is_the_total(
    changes: dict[str, Any], expected: tuple[Any, ...]
) -> None:
    assert costs(measured(**changes))["student_kd"] == expected


def test_a_teacher_that_was_not_measured_is_not_on_record() -> None:
    metrics = measured()
    found = costs(metrics[metrics["role"] != "teacher"])
    assert found["student_kd"] == (None, 5.0, 1.5, None)
    assert found["student_baseline"] == (0.0, 0.0, 1.25, 1.25)
