"""Settings of a loss: what is refused, and how a loss is written in YAML."""

import math
import subprocess
import sys
from typing import Any

import pytest
from pydantic import ValidationError

from kd_pipeline.errors import ParameterError
from kd_pipeline.losses.settings import ObjectiveParams, SoftWeightSchedule


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
        ({"soft_loss": "ttm", "temperature": 2.0}, "`temperature` must be 1 for ttm, which has"),
        ({"soft_loss": {"name": "dkd", "non_target_weight": -1}}, "non_target_weight"),
        ({"soft_loss": {"name": "kl", "standardise_logits": "both"}}, "standardise_logits"),
        ({"soft_weight_schedule": {"warmup_fraction": 1.0}}, "warmup_fraction"),
        ({"soft_weight_schedule": {"stop_fraction": 0.0}}, "stop_fraction"),
        ({"confidence_penalty": -0.1}, "confidence_penalty"),
        ({"confidence_penalty": math.inf}, "confidence_penalty"),
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
        *(
            ({"soft_loss": name}, "`soft_loss` must not need every logit")
            for name in ("dkd", "nkd", "dist", "ttm", "wttm")
        ),
        (
            {"soft_loss": {"name": "kl", "standardise_logits": True}, "temperature": 4.0},
            "`soft_loss` must not need every logit of a top-k cache, got 'kl, standardised'",
        ),
    ],
)
def test_what_a_top_k_cache_cannot_serve_is_refused(settings: Any, message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        ObjectiveParams(**settings).check_top_k(cached_at=4.0)


def test_a_top_k_cache_serves_its_own_temperature_and_the_teachers_decisions() -> None:
    for name in ("kl", "cross_entropy", "reverse_kl", "jensen_shannon"):
        ObjectiveParams(soft_loss=name, temperature=4.0).check_top_k(cached_at=4.0)
    ObjectiveParams(soft_loss="pseudo_label").check_top_k(cached_at=4.0)


def test_settings_are_declared_without_torch() -> None:
    code = "import kd_pipeline.training.settings, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_settings_that_are_used_are_part_of_the_key() -> None:
    block = {"name": "dkd", "target_weight": 1.0, "non_target_weight": 2.0}
    schedule = {"warmup_fraction": 0.1, "stop_fraction": 1.0}
    used = ObjectiveParams(
        soft_loss={**block, "standardise_logits": True},
        soft_weight_schedule={"warmup_fraction": 0.1},
        confidence_penalty=0.5,
    ).model_dump(mode="json")
    assert used["soft_loss"] == {**block, "standardise_logits": True}
    assert used["soft_weight_schedule"] == schedule
    assert used["confidence_penalty"] == 0.5


def test_the_schedule_takes_just_its_shares_of_the_steps() -> None:
    schedule = SoftWeightSchedule(warmup_fraction=0.25, stop_fraction=0.75)
    factors = [schedule.factor(step / 8) for step in range(1, 9)]
    assert factors == [0.5, 1, 1, 1, 1, 1, 0, 0]
    assert [SoftWeightSchedule().factor(step / 8) for step in range(1, 9)] == [1] * 8


def test_whether_labels_are_used_and_the_weight_at_the_end_follow_from_the_schedule() -> None:
    constant = ObjectiveParams(soft_weight=1.0)
    assert not constant.uses_labels
    assert constant.at_the_end() == constant
    stopped = ObjectiveParams(soft_weight=1.0, soft_weight_schedule={"stop_fraction": 0.5})
    assert stopped.uses_labels
    assert stopped.at_the_end() == ObjectiveParams(soft_weight=0.0)
    warm = ObjectiveParams(soft_weight=0.9, soft_weight_schedule={"warmup_fraction": 0.5})
    assert warm.at_the_end() == ObjectiveParams(soft_weight=0.9)
