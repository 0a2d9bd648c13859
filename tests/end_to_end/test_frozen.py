"""The outside of the smoke run, frozen: the names that a user relies on, and what it measures.

frozen.json is not remade when this fails: what differs is a change that users notice. Names are
exact. Another x86 processor rounds otherwise: forced to SSE or AVX2 the largest difference of a
metric was 1e-7, and no prediction changed.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from kd_pipeline.pipeline_registry import register_pipelines

FROZEN: dict[str, Any] = json.loads((Path(__file__).parent / "frozen.json").read_text())
NUM_TEST_IMAGES = 596
# Of the stage that came later; they say that nothing was exported.
OF_THE_EXPORT = {
    "07_model_output/export_predictions.parquet",
    "08_reporting/export_comparison.json",
    "08_reporting/export_metrics.csv",
    "08_reporting/export_report.html",
    "08_reporting/export_report.md",
    "08_reporting/figures/export_figure.png",
}
OF_THE_PAGE = "08_reporting/report.html"
# Of Holm, calibration and cost, which came later.
OF_A_MODEL = {
    "test/nll_calibrated", "test/ece_calibrated", "calibration/temperature",
    "calibration/examples",
}  # fmt: skip
OF_A_GAIN = {
    "p_value_holm", "smallest_detectable", "nll_calibrated", "nll_calibrated_ci_low",
    "nll_calibrated_ci_high",
}  # fmt: skip
ARMS = ("student_kd", "student_baseline", "student_smoothed", "student_pseudo")
COSTS = ("teacher_seconds", "caching_seconds", "train_seconds", "total_seconds")
METRICS_SINCE = {
    "teacher": OF_A_MODEL,
    "student": OF_A_MODEL | {"cost/caching_seconds"},
    "comparison": {
        *(f"gain/{name}" for name in OF_A_GAIN),
        *(f"gain/{arm}/{name}" for arm in ARMS[2:] for name in OF_A_GAIN),
        *(f"cost/{arm}/{name}" for arm in ARMS for name in COSTS),
    },
}
COUNTED = ("test/accuracy", "test/top5_accuracy", "test/teacher_agreement")


@pytest.fixture(scope="module")
def runs(finished_run: Any, fetch_runs: Callable[[Any], list[Any]]) -> dict[str, Any]:
    return {run.info.run_name: run for run in fetch_runs(finished_run)}


def kind(run: str) -> str:
    """Runs of one kind have the same names: those of all students, for instance."""
    return "student" if run.startswith("student") else run.partition("-")[0]


def tolerance(metric: str) -> float:
    if metric == "test/errors":
        return 3
    if metric in COUNTED:
        return 3 / NUM_TEST_IMAGES
    return 5e-3 if metric.startswith("test/") else 0


def test_pipelines_are_registered_by_these_names() -> None:
    assert set(FROZEN["pipelines"]) <= set(register_pipelines())


def test_the_catalog_has_these_entries_at_these_places(finished_run: Any) -> None:
    entries = {}
    for file in (finished_run.path / "conf/base").glob("catalog*.yml"):
        entries |= yaml.safe_load(file.read_text(encoding="utf-8"))
    for name, place in FROZEN["catalog"].items():
        role, _, last = name.rpartition(".")
        path = entries[name if name in entries else f"{{student}}.{last}"]["filepath"]
        assert path.replace("{student}", role) == place, name


def test_the_run_leaves_these_files(finished_run: Any) -> None:
    files = (path.relative_to(finished_run.data) for path in finished_run.data.rglob("*.*"))
    shown = {path.as_posix() for path in files if not any(p.startswith(".") for p in path.parts)}
    assert shown == set(FROZEN["files"]) | OF_THE_EXPORT | {OF_THE_PAGE}


def test_mlflow_has_these_runs_parameters_metrics_and_artifacts(runs: dict[str, Any]) -> None:
    assert set(runs) == set(FROZEN["runs"])
    for name, run in runs.items():
        assert set(run.data.params) == set(FROZEN["parameters"][kind(name)]), name
        metrics = set(FROZEN["metrics"][kind(name)]) | METRICS_SINCE[kind(name)]
        assert set(run.data.metrics) == metrics, name
        assert set(run.data.tags) >= set(FROZEN["tags"].get(kind(name), ())), name
    folder = Path(runs["comparison"].info.artifact_uri.removeprefix("file://"))
    artifacts = {path.relative_to(folder).as_posix() for path in folder.rglob("*.*")}
    later = {Path(OF_THE_PAGE).name, "predictions.parquet"}
    assert artifacts == set(FROZEN["artifacts"]) | later


def test_every_model_measures_what_it_did(finished_run: Any) -> None:
    table = pd.read_csv(finished_run.data / "08_reporting/metrics.csv")
    found = {f"{row['role']}/{row['replicate']}": row for row in table.to_dict("records")}
    assert list(found) == list(FROZEN["measured"])
    for model, metrics in FROZEN["measured"].items():
        for name, value in metrics.items():
            measured = found[model][name]
            assert measured == pytest.approx(value, rel=0, abs=tolerance(name)), f"{model} {name}"
