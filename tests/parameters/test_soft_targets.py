"""How soft targets are cached and read: what the blocks refuse."""

from typing import Any

import pytest
from pydantic import ValidationError

from kd_pipeline.labelling.settings import SoftTargetCachingParams
from kd_pipeline.soft_targets.settings import SoftTargetsParams


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"top_k": 10}, "`temperature` must be given exactly where `top_k` is"),
        ({"temperature": 4.0}, "`temperature` must be given exactly where `top_k` is"),
        ({"top_k": 0, "temperature": 4.0}, "greater than or equal to 1"),
        ({"top_k": 10, "temperature": 0.0}, "greater than 0"),
        ({"top_k": 10, "temperature": float("inf")}, "finite"),
        ({"rows_per_part": 0}, "greater than or equal to 1"),
        ({"min_validation_accuracy": 97.0}, "less than or equal to 1"),
    ],
)
def test_caching_refuses_what_could_not_be_read(block: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SoftTargetCachingParams.model_validate(block)


def test_caching_is_dense_unless_asked() -> None:
    params = SoftTargetCachingParams()
    assert params.top_k is params.temperature is params.min_validation_accuracy is None


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"mixing": "mean"}, "'geometric' or 'arithmetic'"),
        ({"member_weights": [1.0, -1.0]}, "greater than or equal to 0"),
        ({"member_weights": [float("nan")]}, "finite|greater"),
        ({"tail": "drop"}, "'ghost' or 'uniform'"),
        ({"temperature": 2.0}, "Extra inputs"),
    ],
)
def test_reading_refuses_what_is_no_mixture(block: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SoftTargetsParams.model_validate(block)
