"""The block `sweep`: what it refuses, and which parameters are whose."""

from datetime import date
from typing import Any

import pytest
from pydantic import ValidationError

from kd_pipeline.sweep.settings import SearchRange, SweepParams

LR = "student.training.optimiser.arguments.lr"


def sweep(**changes: Any) -> SweepParams:
    return SweepParams(**{"parameters": {LR: {"low": 1e-3, "high": 0.1}}} | changes)


@pytest.mark.parametrize(
    ("span", "message"),
    [
        ({}, "give `low` and `high`, or `choices`"),
        ({"low": 1.0}, "give `low` and `high`, or `choices`"),
        ({"low": 2.0, "high": 1.0}, "`high` must be above `low`"),
        ({"low": 0.0, "high": 1.0, "log": True}, "`low` must be above 0"),
        ({"low": 0.5, "high": 2.0, "integer": True}, "must be a whole number"),
        ({"choices": ["kl"]}, "`choices` must be two or more"),
        ({"choices": [{"name": "kl"}, {"name": "kl"}]}, "`choices` must be two or more"),
        ({"choices": [date(2026, 1, 1), 2]}, "`choices` must be plain values"),
        ({"low": 1.0, "high": float("inf")}, "finite number"),
        ({"choices": [1, 2], "log": True}, "`choices` must stand alone"),
    ],
)
def test_a_range_is_bounds_or_choices(span: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SearchRange(**span)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": []}, "`arms` must name one arm or more"),
        ({"arms": ["student_kd", "student_kd"]}, "each once"),
        ({"shared_from": "student_pseudo"}, "`shared_from` must be one of `arms`"),
        ({"parameters": {}}, "at least 1 item"),
        ({"parameters": {"lr": {"choices": [1, 2]}}}, "must be dotted names"),
        ({"parameters": {"student.seed": {"choices": [1, 2]}}}, "seeds are drawn, not chosen"),
        ({"parameters": {"student.quantisation.lr_factor": {"choices": [1, 2]}}}, "in float"),
        (
            {"parameters": {n: {"choices": ["a", "b"]} for n in ("a.b", "a.b.c")}},
            "must not lie in one another, got a.b, a.b.c",
        ),
        ({"preset": "base"}, "must be a new folder"),
        ({"preset": "../elsewhere"}, "must be a new folder"),
        ({"preset": ""}, "must be a new folder"),
        ({"num_trials": 0}, "greater than or equal to 1"),
        ({"pruner": "best"}, "'median', 'hyperband' or 'none'"),
    ],
)
def test_a_sweep_refuses(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        sweep(**changes)


def test_shared_parameters_are_every_arms_and_others_are_one_arms() -> None:
    span = {"low": 1.0, "high": 8.0}
    params = sweep(parameters={LR: span, "student_kd.temperature": span})
    assert set(params.ranges_of("student_kd")) == {LR, "student_kd.temperature"}
    assert set(params.ranges_of("student_baseline")) == {LR}


def test_shared_values_come_from_the_baseline_unless_another_arm_is_named() -> None:
    assert sweep().shared_source == "student_baseline"
    assert sweep(shared_from="student_kd").shared_source == "student_kd"
    assert sweep(arms=["student_kd", "student_pseudo"]).shared_source == "student_kd"
