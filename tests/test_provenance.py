"""An artefact of something else is refused, with the names and both values."""

import pytest

from kd_pipeline.errors import StaleArtefactError
from kd_pipeline.provenance import check_provenance, differences

FACTS = {
    "class_names": ["a", "b"],
    "images": "i",
    "splits": "s",
    "teacher": ["t0", "t1"],
    "view_policy": {"seed": 0, "transforms": [{"name": "shift"}]},
    "num_views": 2,
}


@pytest.mark.parametrize(
    ("fact", "value", "message"),
    [
        ("teacher", ["t0"], r"this run's teacher \(artefact \['t0', 't1'\], this run \['t0'\]\); "),
        ("images", "j", r"this run's images \(artefact i, this run j\); "),
        ("splits", "z", r"this run's splits \(artefact s, this run z\); "),
        ("view_policy", {"seed": 0, "transforms": []}, r"this run's view policy \(artefact {"),
        ("num_views", 3, r"this run's number of views \(artefact 2, this run 3\); "),
        ("class_names", ["b", "a"], r"this run's class names \(artefact \['a', 'b'\], "),
    ],
)
def test_what_differs_is_named_with_both_values(fact: str, value: object, message: str) -> None:
    with pytest.raises(StaleArtefactError, match=rf"`cache` do not match {message}") as caught:
        check_provenance("cache", FACTS, FACTS | {fact: value}, remedy="make it anew")
    assert str(caught.value).count("artefact") == 1
    assert str(caught.value).endswith("; make it anew")


def test_everything_that_differs_is_named_at_once() -> None:
    message = r"images \(artefact i, this run j\) and splits \(artefact s, this run z\); again"
    with pytest.raises(StaleArtefactError, match=message):
        check_provenance("cache", FACTS, {"images": "j", "splits": "z"}, remedy="again")


def test_only_facts_at_hand_are_compared_and_tuples_are_lists() -> None:
    check_provenance("cache", FACTS, {}, remedy="")
    check_provenance("cache", FACTS, {"class_names": ("a", "b")}, remedy="")


def test_a_fact_that_is_not_stated_differs() -> None:
    found = differences({}, {"splits": "s"}, left="part", right="manifest")
    assert found == ["splits (part none stated, manifest s)"]


def test_long_values_are_shortened() -> None:
    (found,) = differences({"x": "a" * 100}, {"x": "b"}, left="one", right="other")
    assert found == f"x (one {'a' * 77}..., other b)"
