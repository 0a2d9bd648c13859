"""The saved view of the charts: fits a tag, grouped by arm, every chart in a section."""

import base64
import json
import zlib
from typing import Any

from kd_pipeline.tracking.chart_view import group_filter, runs_filter, view_tag
from kd_pipeline.tracking.store import Store, chart_link


def state(search_filter: str) -> dict[str, Any]:
    packed = json.loads(view_tag(search_filter))["state"].removeprefix("deflate;")
    unpacked: dict[str, Any] = json.loads(zlib.decompress(base64.b64decode(packed)))
    return unpacked


def test_the_arms_are_grouped_and_every_chart_has_its_section() -> None:
    view = state(group_filter("g"))
    assert view["groupBy"]["groupByKeys"] == [{"mode": "tag", "groupByData": "kd.arm"}]
    sections = {section["uuid"] for section in view["compareRunSections"]}
    assert {chart["metricSectionId"] for chart in view["compareRunCharts"]} == sections
    metrics = {chart["metricKey"] for chart in view["compareRunCharts"]}
    assert {"test/accuracy", "test/nll", "test/ece", "validation/accuracy"} <= metrics


def test_it_fits_into_a_tag_even_for_many_runs() -> None:
    """5,000 characters are MLflow's bound for the tag of an experiment."""
    ids = [f"{number:032x}" for number in range(41)]
    assert state(runs_filter(ids))["searchFilter"].count("'") == 82
    assert len(view_tag(runs_filter(ids))) < 5000


def test_the_link_opens_the_view_on_the_server_or_here() -> None:
    here = chart_link(Store("sqlite:////p/mlflow.db", "e", None), "1", "20261120-1a2b")
    assert here.startswith("http://127.0.0.1:5000/#/experiments/1/runs?")
    assert here.endswith("&compareRunsMode=CHART&viewStateShareKey=20261120-1a2b")
    there = chart_link(Store("https://mlflow.example/", "e", None), "7", "k")
    assert there.startswith("https://mlflow.example/#/experiments/7/runs?")
