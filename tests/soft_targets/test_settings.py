"""The block `soft_targets`: shares, and what it refuses."""

from typing import Any

import pytest
from pydantic import ValidationError

from kd_pipeline.errors import ParameterError
from kd_pipeline.soft_targets.settings import Calibration, SoftTargetsParams


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"ensemble_average": "mean"}, "'geometric' or 'arithmetic'"),
        ({"member_weights": [1.0, -1.0]}, "greater than or equal to 0"),
        ({"member_weights": [float("nan")]}, "finite|greater"),
        ({"member_weights": [0.0, 0.0]}, r"not be all 0, got \[0.0, 0.0\]"),
        ({"tail": "drop"}, "'ghost' or 'uniform'"),
        ({"temperature": 2.0}, "Extra inputs"),
    ],
)
def test_what_is_no_average_is_refused(block: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SoftTargetsParams.model_validate(block)


def test_a_message_rounds_the_shares_that_a_temperature_was_fitted_with() -> None:
    fitted = Calibration({"geometric": 1.5, "arithmetic": 1.25}, (1 / 3, 2 / 3), 100)
    asked = SoftTargetsParams(teacher_calibration="temperature", member_weights=(1.0, 1.0))
    message = (
        "^`soft_targets.member_weights` must be those that the teacher's temperature was fitted "
        r"with, \[0.3333, 0.6667\]; run soft_target_caching again, got \(1.0, 1.0\)$"
    )
    with pytest.raises(ParameterError, match=message):
        asked.fitted_temperature(fitted, is_top_k=False, num_members=2)


def test_shares_add_up_to_one() -> None:
    assert SoftTargetsParams().shares(4) == (0.25,) * 4
    weighted = SoftTargetsParams(ensemble_average="arithmetic", member_weights=(3.0, 1.0))
    assert weighted.describe(2) == {"kind": "arithmetic", "shares": [0.75, 0.25]}
    message = r"member_weights` must have one weight .*, got \[3.0, 1.0\]$"
    with pytest.raises(ParameterError, match=message):
        weighted.shares(3)


FITTED = Calibration({"geometric": 1.5, "arithmetic": 1.25}, (0.5, 0.5), 100)


@pytest.mark.parametrize(
    ("settings", "calibration", "is_top_k", "message"),
    [
        (
            {},
            FITTED,
            True,
            "teacher_calibration` must be null with a top-k cache.*, got 'temperature'$",
        ),
        (
            {},
            None,
            False,
            "teacher_calibration` must be null for soft targets without .*, got 'temperature'$",
        ),
        (
            {"member_weights": (3.0, 1.0)},
            FITTED,
            False,
            r"member_weights` must be those that the teacher's temperature was fitted with, \[0.5",
        ),
    ],
)
def test_a_temperature_that_was_not_fitted_to_these_logits_is_refused(
    settings: dict[str, Any], calibration: Calibration | None, is_top_k: bool, message: str
) -> None:
    asked = SoftTargetsParams(teacher_calibration="temperature", **settings)
    with pytest.raises(ParameterError, match=message):
        asked.fitted_temperature(calibration, is_top_k=is_top_k, num_members=2)
    # Where none is asked for, nothing has to have been fitted.
    plain = SoftTargetsParams(**settings)
    found = plain.fitted_temperature(calibration, is_top_k=is_top_k, num_members=2)
    assert found is None
