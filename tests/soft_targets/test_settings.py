"""The block `soft_targets`: shares, and what it refuses."""

from typing import Any

import pytest
from pydantic import ValidationError

from kd_pipeline.errors import ParameterError
from kd_pipeline.soft_targets.settings import SoftTargetsParams


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


def test_shares_add_up_to_one() -> None:
    assert SoftTargetsParams().shares(4) == (0.25,) * 4
    weighted = SoftTargetsParams(ensemble_average="arithmetic", member_weights=(3.0, 1.0))
    assert weighted.describe(2) == {"kind": "arithmetic", "shares": [0.75, 0.25]}
    with pytest.raises(ParameterError, match="member_weights` must have one weight"):
        weighted.shares(3)
