"""The list of hops: who learns from whom, and what is no chain."""

from typing import Any

import pytest
from pydantic import ValidationError

from kd_pipeline.training.block_settings import DIRECT, LABELS_ALONE, ChainParams, twins_of


def hop(name: str, **settings: Any) -> dict[str, Any]:
    return {"name": name, "model": {"name": "mlp"}, **settings}


def chain(*hops: dict[str, Any], **settings: Any) -> ChainParams:
    return ChainParams.model_validate({"hops": hops, **settings})


def test_each_hop_learns_from_the_one_before_and_the_first_from_the_teacher() -> None:
    told = chain(hop("large"), hop("middle", num_members=3), hop("small")).learnt_from
    assert told == {
        "large": "teacher",
        "middle": "large",
        "small": "middle",
        LABELS_ALONE: "teacher",
        DIRECT: "teacher",
    }


def test_a_single_hop_is_its_own_direct_twin() -> None:
    assert chain(hop("only")).learnt_from == {"only": "teacher", LABELS_ALONE: "teacher"}
    assert DIRECT in twins_of(2)


def test_a_twin_has_the_settings_of_the_last_hop() -> None:
    params = chain(hop("a"), hop("b", temperature=4.0))
    assert params.hop("a").temperature == 1.0
    assert params.hop(DIRECT) is params.hop(LABELS_ALONE) is params.hops[-1]
    assert params.hop("b") is params.hops[-1]


@pytest.mark.parametrize(
    ("hops", "message"),
    [
        ([], "at least 1 item"),
        ([hop("a"), hop("a")], "names of their own"),
        ([hop("a"), hop("b", num_members=2)], "`num_members` of the last hop"),
        ([hop("teacher")], "must be none of teacher"),
        ([hop("student_kd")], "must be none of"),
        ([hop("chain_direct")], "must be none of"),
        ([hop("images")], "must be none of"),
        ([hop("Large")], "pattern"),
        ([hop("a.b")], "pattern"),
        ([hop("a", soft_weight=0.0)], "greater than 0"),
        ([hop("a", soft_loss="logit_mse", temperature=4.0)], "`temperature` must be 1"),
        ([hop("a", temprature=4.0)], "Extra inputs"),
        ([{"name": "a"}], "model"),
    ],
)
def test_what_is_no_chain_is_refused(hops: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        chain(*hops)


def test_names_that_only_resemble_others_are_let_in() -> None:
    assert chain(hop("teacher_assistant"), hop("students")).hops[0].name == "teacher_assistant"
