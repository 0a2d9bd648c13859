"""Settings of a loss: what is refused, and how a loss is written in YAML."""

import math
import subprocess
import sys
from typing import Any

import pytest
from pydantic import ValidationError

from kd_pipeline.errors import ParameterError
from kd_pipeline.losses.settings import ObjectiveParams


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"soft_weight": 1.5}, "soft_weight"),
        ({"temperature": 0.0}, "temperature"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"label_smoothing": -0.1}, "label_smoothing"),
        ({"label_smoothing": 1.0}, "label_smoothing"),
        ({"soft_loss": "mse"}, "`soft_loss` must be one of kl, cross_entropy"),
        ({"soft_loss": {"temperature": 2}}, "`soft_loss` must be one of"),
        ({"soft_loss": {"name": ["kl"]}}, "`soft_loss` must be one of"),
        ({"soft_loss": 3}, "`soft_loss` must be one of"),
        ({"soft_loss": {"name": "kl", "beta": 2}}, "beta"),
        ({"soft_loss": "logit_mse", "temperature": 2.0}, "`temperature` must be 1 for logit_mse"),
        ({"soft_loss": "pseudo_label", "temperature": 2.0}, "`temperature` must be 1"),
    ],
)
def test_what_is_wrong_or_would_be_ignored_is_refused(settings: dict[str, Any], name: str) -> None:
    with pytest.raises(ValidationError, match=name):
        ObjectiveParams(**settings)


def test_a_bare_name_and_a_block_are_the_same_loss_and_are_logged_by_name() -> None:
    bare, block = ObjectiveParams(soft_loss="kl"), ObjectiveParams(soft_loss={"name": "kl"})
    assert bare == block == ObjectiveParams()
    assert bare.model_dump(mode="json")["soft_loss"] == "kl"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"soft_loss": "logit_mse"},
            r"`soft_loss` must not need every logit of a top-k cache, got 'logit_mse'$",
        ),
        (
            {"temperature": 2.0},
            r"`temperature` must be 4, which this top-k cache is tied to, got 2\.0$",
        ),
    ],
)
def test_what_a_top_k_cache_cannot_serve_is_refused(settings: Any, message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        ObjectiveParams(**settings).check_top_k(cached_at=4.0)


def test_a_top_k_cache_serves_its_own_temperature_and_the_teachers_decisions() -> None:
    ObjectiveParams(temperature=4.0).check_top_k(cached_at=4.0)
    ObjectiveParams(soft_loss="pseudo_label").check_top_k(cached_at=4.0)


def test_settings_are_declared_without_torch() -> None:
    code = "import kd_pipeline.training.settings, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
