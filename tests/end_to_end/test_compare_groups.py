"""`kedro run --pipelines=compare_groups` after two runs: tables, a page, and paired intervals."""

from typing import Any

import pandas as pd

from kd_pipeline.errors import DataError, SettingsError
from kd_pipeline.locks import take_lock


def test_one_group_is_refused_and_two_are_put_side_by_side(
    finished: Any, run_here: Any, fetch_runs: Any
) -> None:
    assert "two groups or more" in run_here(finished, ["compare_groups"], tracked=True).refused(
        DataError
    )
    assert run_here(finished, ["evaluation"], tracked=True).error is None
    num_runs = len(fetch_runs(finished))
    lock = take_lock(finished.data / ".run.lock", busy="another run")
    assert lock is not None
    outcome = run_here(finished, ["compare_groups"], tracked=True)
    lock.release()
    assert outcome.error is None
    assert len(fetch_runs(finished)) == num_runs
    reporting = finished.data / "08_reporting"
    assert "group_comparison.html" in outcome.stdout
    assert "example by example: distilled (student_kd), teacher, hard labels" in outcome.stdout
    table = pd.read_csv(reporting / "group_comparison.csv", keep_default_na=False)
    between = table[~table["minus"].isin(["", "student_baseline"])]
    assert set(between["mean"].astype(float)) == {0.0}
    assert set(between["arm"]) == {
        "teacher", "student_kd", "student_baseline", "student_smoothed", "student_pseudo",
    }  # fmt: skip
    report = (reporting / "group_comparison.md").read_text(encoding="utf-8")
    assert "| pipeline |  | distill | evaluation |" in report
    assert (reporting / "group_comparison.html").read_text("utf-8").startswith("<!doctype html>")


def test_an_unknown_group_is_answered_with_the_nearest(finished: Any, run_here: Any) -> None:
    assert run_here(finished, ["evaluation"], tracked=True).error is None
    params = {"compare_groups": {"groups": "yesterday today"}}
    outcome = run_here(finished, ["compare_groups"], tracked=True, params=params)
    assert "got 'yesterday'" in outcome.refused(ValueError)


def test_one_name_alone_is_no_setting(finished: Any, run_here: Any) -> None:
    params = {"compare_groups": {"groups": "yesterday"}}
    message = run_here(finished, ["compare_groups"], params=params).refused(SettingsError)
    assert message == (
        "`compare_groups.groups` must name two groups or more, each once, got ['yesterday']"
    )
