"""Values by dotted name: where they go, what is drawn, what is left out."""

from typing import Any

import optuna
import pytest

from kd_pipeline.sweep.settings import SearchRange
from kd_pipeline.sweep.space import (
    apply_values,
    decode_values,
    present_values,
    put,
    suggest,
)
from kd_pipeline.training.settings import ArmParams

BLOCKS: dict[str, Any] = {
    "student": {"training": {"optimiser": {"name": "AdamW", "arguments": {"lr": 0.01}}}},
    "student_kd": {"soft_loss": "kl", "temperature": 4.0, "soft_weight": 1.0},
}
LR = "student.training.optimiser.arguments.lr"
LOSS, TEMPERATURE = "student_kd.soft_loss", "student_kd.temperature"


def test_a_value_is_put_at_its_dotted_name_and_nothing_else_changes() -> None:
    changed = put(BLOCKS, {LR: 0.5})
    assert changed["student"]["training"]["optimiser"]["arguments"] == {"lr": 0.5}
    assert changed["student_kd"] == BLOCKS["student_kd"]
    assert BLOCKS["student"]["training"]["optimiser"]["arguments"] == {"lr": 0.01}


def test_blocks_on_the_way_are_made_and_a_bare_name_becomes_a_block() -> None:
    changed = put(BLOCKS, {"student.training.schedule.name": "constant", f"{LOSS}.beta": 2})
    assert changed["student"]["training"]["schedule"] == {"name": "constant"}
    assert changed["student_kd"]["soft_loss"] == {"name": "kl", "beta": 2}


def test_a_loss_without_temperature_gets_none() -> None:
    without = apply_values(BLOCKS, "student_kd", {LOSS: "logit_mse"})
    assert without["student_kd"] == {"soft_loss": "logit_mse", "soft_weight": 1.0}
    kept = apply_values(BLOCKS, "student_kd", {LOSS: "cross_entropy"})
    assert kept["student_kd"]["temperature"] == 4.0


def test_settings_at_hand_outside_their_range_are_left_out() -> None:
    ranges = {
        LR: SearchRange(low=0.1, high=1.0),
        TEMPERATURE: SearchRange(low=1.0, high=8.0),
        LOSS: SearchRange(choices=("kl", "logit_mse")),
        "student_kd.soft_weight": SearchRange(choices=(0.25, 0.5)),
    }
    assert present_values(BLOCKS, ranges) == {TEMPERATURE: 4.0, LOSS: "kl"}


def test_a_loss_at_hand_is_found_among_choices_that_name_it_otherwise() -> None:
    """At hand it has all of its own settings; a choice has those that the user wrote."""
    choices = ("kl", {"name": "dkd", "non_target_weight": 2.0}, "dkd")
    ranges = {LOSS: SearchRange(choices=choices)}
    own = ArmParams(soft_loss="dkd", soft_weight=1.0).model_dump(mode="json")
    found = present_values({"student_kd": own}, ranges)
    assert found == {LOSS: "dkd"}
    own = ArmParams(soft_loss={"name": "dkd", "non_target_weight": 2.0}).model_dump(mode="json")
    found = present_values({"student_kd": own}, ranges)
    assert decode_values(found, ranges) == {LOSS: {"name": "dkd", "non_target_weight": 2.0}}
    own = ArmParams(soft_loss={"name": "dkd", "non_target_weight": 3.0}).model_dump(mode="json")
    assert present_values({"student_kd": own}, ranges) == {}


@pytest.mark.parametrize("number", range(8))
def test_what_is_drawn_lies_in_its_range_and_a_temperature_goes_with_a_loss_that_has_one(
    number: int,
) -> None:
    block = {"name": "constant"}
    ranges = {
        TEMPERATURE: SearchRange(low=1.0, high=8.0, log=True),
        LOSS: SearchRange(choices=("kl", "logit_mse")),
        "student.training.batch_size": SearchRange(low=16, high=64, integer=True),
        "student.training.schedule": SearchRange(choices=(block, None)),
    }
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=number))
    trial = study.ask()
    values = suggest(trial, ranges, "student_kd")
    assert (TEMPERATURE in values) == (values[LOSS] == "kl")
    assert 1.0 <= values.get(TEMPERATURE, 1.0) <= 8.0
    assert isinstance(values["student.training.batch_size"], int)
    assert values["student.training.schedule"] in (block, None)
    assert decode_values(trial.params, ranges) == values
