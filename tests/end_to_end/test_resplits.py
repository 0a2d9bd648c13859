"""`python -m kd_pipeline.resplits` as a user types it."""

import json
from collections.abc import Callable
from typing import Any

import pytest


@pytest.mark.long
def test_each_run_has_a_split_of_its_own_and_mlflow_has_the_combination(
    fresh: Any, fetch_runs: Callable[[Any], list[Any]]
) -> None:
    done = fresh.after("python -m kd_pipeline.resplits --num 2 --env smoke")
    assert "2 resplits" in done.stdout
    folder = fresh.data / "08_reporting/resplits/smoke"
    found = json.loads((folder / "resplits.json").read_text())
    assert found["seeds"] == [0, 1]
    assert not found["method"]["same_test_set"]
    assert found["method"]["num_test_examples"] == 596
    run = fetch_runs(fresh)[-1]
    assert run.info.run_name == "resplits"
    gain = found["gains"]["student_kd"]["accuracy"]["mean"]
    assert run.data.metrics["gain/accuracy"] == pytest.approx(gain)
    assert run.data.tags["kd.compared_groups"].split(",") == found["groups"]
