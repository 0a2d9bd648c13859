"""Past groups come back from MLflow as they were logged; others are refused by name."""

import io
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError

from kd_pipeline.errors import DataError, ParameterError, TrackingStoreError
from kd_pipeline.events import TrainingEnded, TrainingStarted
from kd_pipeline.tracking.groups import pack_predictions, read_groups
from kd_pipeline.tracking.settings import CompareGroupsParams
from kd_pipeline.tracking.store import Store

IDS = ("20261130-101355-aaaa", "20261130-113012-bbbb", "20261201-080000-cccc")
DIFFERENCE = {
    "mean": 0.05,
    "ci95": [0.01, 0.09],
    "p_value": 0.01,
    "p_value_holm": 0.02,
    "smallest_detectable": 0.06,
}


def predictions(num_examples: int = 6) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "role": "student_kd",
            "replicate": 0,
            "example_id": np.arange(num_examples) * 2**40,
            "label": 1,
            "predicted": np.arange(num_examples) % 2,
            "confidence": 0.5,
            "nll": 0.1,
        }
    )


def log_group(book: Any, group: str, *, temperature: float = 4.0, kept: bool = True) -> None:
    book.open_comparison()
    started = TrainingStarted(0, {"arm": {"temperature": temperature}}, 1)
    book.training_started("student_kd", started, [])
    book.training_ended("student_kd", TrainingEnded(0, f"f-{group}", {}))
    row = {"role": "student_kd", "replicate": 0, "checkpoint": f"f-{group}", "test/accuracy": 0.5}
    book.log_test_metrics([row], [])
    if kept:
        book.log_predictions(predictions(), "t1")
    gain = {"accuracy": DIFFERENCE, "nll": DIFFERENCE, "gap_recovered": None}
    comparison = {
        "group": group,
        "distilled": "student_kd",
        "gains": {"student_kd": gain},
        "costs": {},
    }
    book.log_comparison(comparison, rows=[row], settings={"seed": 0})
    book.end("FINISHED")


@pytest.fixture
def logged(begin_book: Callable[..., Any]) -> None:
    for number, group in enumerate(IDS):
        log_group(begin_book(group), group, temperature=number + 1.0, kept=number > 0)


@pytest.mark.usefixtures("logged")
def test_the_newest_groups_come_back_oldest_first_with_what_they_were_made_with(
    store: Store,
) -> None:
    earlier, later = read_groups(store, CompareGroupsParams())
    assert (earlier["group"], later["group"]) == IDS[1:]
    assert earlier["pipeline"] == "distill"
    assert earlier["comparison"]["gains"]["student_kd"]["accuracy"] == DIFFERENCE
    assert earlier["settings"]["student_kd"]["temperature"] == "2.0"
    assert later["settings"]["student_kd"]["temperature"] == "3.0"
    assert later["settings"]["evaluation"] == {"seed": "0"}
    assert later["test_fingerprint"] == "t1"
    read = later["predictions"]
    assert list(read["example_id"]) == list(predictions()["example_id"])
    assert list(read["predicted"]) == list(predictions()["predicted"])
    assert set(read["role"]) == {"student_kd"}


@pytest.mark.usefixtures("logged")
def test_named_groups_keep_their_order_and_one_without_predictions_is_read_too(
    store: Store,
) -> None:
    groups = read_groups(store, CompareGroupsParams(groups=(IDS[2], IDS[0])))
    assert [one["group"] for one in groups] == [IDS[2], IDS[0]]
    assert (groups[1]["predictions"], groups[1]["test_fingerprint"]) == (None, None)


@pytest.mark.usefixtures("logged")
def test_what_is_not_there_is_refused_with_what_is(store: Store) -> None:
    with pytest.raises(ParameterError) as error:
        read_groups(store, CompareGroupsParams(groups=(IDS[0], "20261130-113012-bbbc")))
    assert str(error.value).startswith("`compare_groups.groups` must name groups that compared")
    assert f"such as {IDS[1]}, " in str(error.value)
    assert str(error.value).endswith("got '20261130-113012-bbbc'")
    with pytest.raises(ParameterError, match=r"must be at most 3, the number .* got 4"):
        read_groups(store, CompareGroupsParams(groups=4))


def test_one_group_cannot_be_compared_nor_one_that_failed(
    store: Store, begin_book: Callable[..., Any]
) -> None:
    with pytest.raises(DataError, match=r"two groups or more .* got 0; `kedro run"):
        read_groups(store, CompareGroupsParams())
    log_group(begin_book(IDS[0]), IDS[0])
    failed = begin_book(IDS[1])
    failed.open_comparison()
    failed.end("FAILED", error="oops")
    with pytest.raises(DataError, match="got 1"):
        read_groups(store, CompareGroupsParams())


def test_a_server_that_is_away_is_named() -> None:
    away = Store("http://127.0.0.1:9", "e", None)
    with pytest.raises(TrackingStoreError, match=r"MLflow at http://127\.0\.0\.1:9 cannot be read"):
        read_groups(away, CompareGroupsParams())


@pytest.mark.parametrize("groups", [1, "one", ["a"], ["a", "a"], 101, 2.5])
def test_fewer_than_two_groups_are_no_setting(groups: Any) -> None:
    with pytest.raises(ValidationError):
        CompareGroupsParams(groups=groups)


@pytest.mark.parametrize("groups", ["a b", ["a", "b"], ("a", "b")])
def test_groups_are_a_list_or_one_text_as_on_the_command_line(groups: Any) -> None:
    assert CompareGroupsParams(groups=groups).groups == ("a", "b")
    assert CompareGroupsParams(groups=3).groups == 3


def test_predictions_are_small_and_nll_stays_within_float32() -> None:
    """A test set of 10,000 and 21 models: below 2 MB."""
    generator = np.random.default_rng(0)
    num = 21 * 10_000
    table = pd.DataFrame(
        {
            "role": np.repeat([f"student_{n}" for n in range(21)], 10_000),
            "replicate": 0,
            "example_id": np.tile(np.arange(10_000), 21),
            "label": np.tile(generator.integers(10, size=10_000), 21),
            "predicted": generator.integers(10, size=num),
            "nll": generator.exponential(size=num),
        }
    )
    packed = pack_predictions(table)
    assert len(packed) < 2e6
    read = pd.read_parquet(io.BytesIO(packed))
    assert np.abs(read["nll"] - table["nll"]).max() < 1e-6
    assert json.loads(read["example_id"].to_json()) == json.loads(table["example_id"].to_json())
