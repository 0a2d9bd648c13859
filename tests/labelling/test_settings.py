"""The block `soft_target_caching`: what it refuses."""

import subprocess
import sys
from typing import Any

import pytest
from pydantic import ValidationError

from kd_pipeline.labelling.settings import SoftTargetCachingParams


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"top_k": 10}, "`temperature` must be given exactly where `top_k` is"),
        ({"temperature": 4.0}, "`temperature` must be given exactly where `top_k` is"),
        ({"top_k": 0, "temperature": 4.0}, "greater than or equal to 1"),
        ({"top_k": 10, "temperature": 0.0}, "must lie in"),
        ({"top_k": 10, "temperature": float("inf")}, "must lie in"),
        ({"rows_per_part": 0}, "greater than or equal to 1"),
        ({"min_validation_accuracy": 97.0}, "less than or equal to 1"),
    ],
)
def test_what_could_not_be_read_is_refused(block: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SoftTargetCachingParams.model_validate(block)


def test_a_cache_is_dense_unless_asked() -> None:
    params = SoftTargetCachingParams()
    assert params.top_k is params.temperature is params.min_validation_accuracy is None


def test_settings_need_no_torch() -> None:
    code = "import sys, kd_pipeline.labelling.settings; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
