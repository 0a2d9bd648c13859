"""Past groups side by side: paired where the test set is the same, a reason where it is not."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from kd_pipeline.evaluation.group_report import group_report, group_verdict
from kd_pipeline.evaluation.groups import compare_groups, differing_settings, group_table
from kd_pipeline.evaluation.page import html_page
from kd_pipeline.evaluation.settings import EvaluationParams
from kd_pipeline.evaluation.terminal import groups_summary

PARAMS = EvaluationParams(num_bootstrap_samples=200)
ARM = "student_kd"


@pytest.fixture
def group(draw: Callable[..., Any]) -> Callable[..., dict[str, Any]]:
    def make(name: str, *, settings: dict[str, Any] | None = None, **drawn: Any) -> dict[str, Any]:
        result = draw(**drawn)
        return {
            "group": name,
            "env": "base",
            "pipeline": "distill",
            "start": "2026-11-30 10:13 UTC",
            "comparison": result.comparison,
            "settings": settings or {},
            "test_fingerprint": "t1",
            "predictions": result.predictions,
        }

    return make


def row(table: Any, **where: str) -> Any:
    for name, value in where.items():
        table = table[table[name] == value]
    (found,) = table.to_dict("records")
    return found


def test_a_difference_is_that_of_the_mean_accuracies_and_its_sign_is_later_minus_earlier(
    group: Callable[..., Any],
) -> None:
    first = group("a", num_examples=200)
    second = group("b", num_examples=200, seed=1)
    compared = compare_groups([first, second], PARAMS)
    assert not compared["not_compared"]
    assert next(one["role"] for one in compared["differences"]) == "teacher"
    (one,) = [one for one in compared["differences"] if one["role"] == ARM]
    means = []
    for taken in (first, second):
        rows = taken["predictions"].query("role == @ARM")
        means.append((rows["predicted"] == rows["label"]).mean())
    assert one["accuracy"]["mean"] == pytest.approx(means[1] - means[0])
    assert (one["later"], one["earlier"], one["accuracy"]["replicates"]) == ("b", "a", 5)
    table = group_table(compared)
    found = row(table, group="b", arm=ARM, metric="accuracy", minus="a")
    assert [found["ci_low"], found["ci_high"]] == one["accuracy"]["ci95"]
    gain = row(table, group="a", arm=ARM, metric="nll", minus="student_baseline")
    assert gain["mean"] == first["comparison"]["gains"][ARM]["nll"]["mean"]
    mean = row(table, group="a", arm=ARM, metric="accuracy", minus="")
    assert mean["mean"] == first["comparison"]["arms"][ARM]["accuracy"]["mean"]


def test_a_group_minus_itself_is_nothing(group: Callable[..., Any]) -> None:
    one = group("a", num_examples=100)
    compared = compare_groups([one, {**one, "group": "b"}], PARAMS)
    for difference in compared["differences"]:
        assert difference["accuracy"]["mean"] == difference["nll"]["mean"] == 0
        assert difference["accuracy"]["p_value"] == 1
    sentences = group_verdict(compared)
    assert sentences == [
        "Equal in b and a, example by example: distilled (student_kd), teacher, hard labels "
        "(student_baseline), label smoothing (student_smoothed), pseudo-labels (student_pseudo)."
    ]


def test_replicates_that_only_one_group_has_are_left_out(group: Callable[..., Any]) -> None:
    first, second = group("a", num_examples=100), group("b", num_examples=100, num_replicates=2)
    for pair in ([first, second], [second, first]):
        (one,) = [d for d in compare_groups(pair, PARAMS)["differences"] if d["role"] == ARM]
        assert one["accuracy"]["replicates"] == 2


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"test_fingerprint": "t2"}, "their test sets differ: fingerprints t1 and t2"),
        (
            {"predictions": None, "test_fingerprint": None},
            "b was logged without its predictions, as by `--from-nodes=compare_arms`",
        ),
    ],
)
def test_groups_that_share_no_test_set_have_a_reason_and_are_tabled_all_the_same(
    group: Callable[..., Any], change: dict[str, Any], reason: str
) -> None:
    one = group("a", num_examples=100)
    compared = compare_groups([one, {**one, "group": "b", **change}], PARAMS)
    assert not compared["differences"]
    assert compared["not_compared"] == [{"later": "b", "earlier": "a", "reason": reason}]
    report = group_report(compared)
    assert f"b and a are not compared in pairs: {reason}." in report
    assert "No two of these groups are compared in pairs." in report
    assert report.count(f"| distilled ({ARM}) |") == 2
    assert group_table(compared)["minus"].isin(["", "student_baseline"]).all()


def test_every_two_of_three_groups_are_compared(group: Callable[..., Any]) -> None:
    one = group("a", num_examples=50, num_replicates=2)
    compared = compare_groups([one, {**one, "group": "b"}, {**one, "group": "c"}], PARAMS)
    found = [(d["later"], d["earlier"]) for d in compared["differences"] if d["role"] == ARM]
    assert found == [("b", "a"), ("c", "a"), ("c", "b")]


def test_settings_that_differ_are_named_once_for_all_roles(group: Callable[..., Any]) -> None:
    names = ("pipeline", "env", "settings")
    first = dict(zip(names, ("distill", "smoke", {
        "student_kd": {"lr": "0.1", "temperature": "4", "batch_size": "64"},
        "student_baseline": {"lr": "0.1", "temperature": "1"},
        "only_here": {"lr": "9"},
    }), strict=True))  # fmt: skip
    second = dict(zip(names, ("distill", "base", {
        "student_kd": {"lr": "0.2", "temperature": "2"},
        "student_baseline": {"lr": "0.2", "temperature": "1"},
    }), strict=True))  # fmt: skip
    assert differing_settings([first, second]) == [
        {"setting": "env", "roles": [], "values": ["smoke", "base"]},
        {"setting": "lr", "roles": ["student_kd", "student_baseline"], "values": ["0.1", "0.2"]},
        {"setting": "temperature", "roles": ["student_kd"], "values": ["4", "2"]},
        {"setting": "batch_size", "roles": ["student_kd"], "values": ["64", None]},
    ]


def test_the_report_is_one_page_and_its_summary_ends_with_the_path(
    group: Callable[..., Any],
) -> None:
    settings = {ARM: {"views.transforms": "a|b\n<script>alert(1)</script>"}}
    first = group("a", num_examples=100, settings=settings)
    second = group("b", num_examples=100, settings={ARM: {"views.transforms": "[]"}}, seed=2)
    compared = compare_groups([first, second], PARAMS)
    report = group_report(compared)
    assert r"| views.transforms | student_kd | a\|b <script>alert(1)</script> | [] |" in report
    page = html_page(report, {})
    assert "a|b &lt;script&gt;" in page
    assert page.count("<table>") == 3
    summary = groups_summary(compared, "group_comparison.html").splitlines()
    assert summary[-1] == "Report: group_comparison.html"
    assert summary[0].startswith(("distilled (student_kd)", "No evidence that distilled"))
    assert not any("**" in line for line in summary)


def test_a_gain_beyond_noise_is_said_to_be_one(group: Callable[..., Any]) -> None:
    weak = {"teacher": 0.99, "student_kd": 0.6, "student_baseline": 0.5}
    strong = {**weak, "student_kd": 0.9}
    pair = [group(name, accuracy=a) for name, a in (("a", weak), ("b", strong))]
    assert "**distilled (student_kd) is better in b than in a**: +29.93" in group_report(
        compare_groups(pair, PARAMS)
    )
    assert "**distilled (student_kd) is worse in a than in b**: -29.93" in group_report(
        compare_groups(pair[::-1], PARAMS)
    )
    assert np.isfinite(group_table(compare_groups(pair, PARAMS))["mean"]).all()
