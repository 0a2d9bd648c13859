"""Wiring, and the catalog entries that the outputs go through."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, get_type_hints

import pandas as pd
import pytest
import yaml
from kedro.io import DataCatalog, MemoryDataset
from kedro.runner import SequentialRunner

from kd_pipeline.errors import ParameterError
from kd_pipeline.evaluation.settings import EvaluationParams
from kd_pipeline.pipelines.evaluation import create_pipeline
from kd_pipeline.soft_targets.settings import SoftTargetsParams

ROOT = Path(__file__).parents[3]
ARMS = ("student_baseline", "student_kd")
OUTPUTS = {
    "predictions", "metrics", "comparison", "report",
    "accuracy_figure", "reliability_figure", "confusion_figure", "class_gain_figure",
}  # fmt: skip


def catalog_entries() -> dict[str, Any]:
    text = (ROOT / "conf/base/catalog_evaluation.yml").read_text()
    entries: dict[str, Any] = yaml.safe_load(text)
    return {name: entry for name, entry in entries.items() if not name.startswith("_")}


def test_takes_and_gives_what_the_design_says() -> None:
    pipeline = create_pipeline(ARMS)
    assert pipeline.inputs() == {
        "images",
        "examples",
        "splits",
        "params:evaluation",
        "params:soft_targets",
        "teacher.checkpoints",
        "student_baseline.checkpoints",
        "student_kd.checkpoints",
    }
    assert pipeline.all_outputs() == OUTPUTS


def test_node_names_are_function_names_and_parameters_are_typed() -> None:
    for node in create_pipeline(ARMS).nodes:
        assert node.name == node.func.__name__
        if "params:evaluation" in node.inputs:
            assert get_type_hints(node.func)["params"] is EvaluationParams
        if "params:soft_targets" in node.inputs:
            assert get_type_hints(node.func)["mixing"] is SoftTargetsParams


def test_the_baseline_is_needed() -> None:
    with pytest.raises(ParameterError, match="`arms` must hold student_baseline"):
        create_pipeline(["student_kd"])


def test_every_output_has_a_catalog_entry_in_the_reporting_layer() -> None:
    entries = catalog_entries()
    assert set(entries) == OUTPUTS
    assert {entry["metadata"]["kedro-viz"]["layer"] for entry in entries.values()} == {"reporting"}


def test_the_parameters_in_base_are_valid() -> None:
    text = (ROOT / "conf/base/parameters_evaluation.yml").read_text()
    values = yaml.safe_load(text)["evaluation"]
    EvaluationParams(**{**values, "seed": 0, "device": "auto"})


def test_the_registry_does_not_pay_for_torch_and_matplotlib() -> None:
    code = (
        "import sys, kd_pipeline.pipelines.evaluation as stage;"
        "stage.create_pipeline(['student_baseline']);"
        "print([m for m in ('torch', 'torchmetrics', 'matplotlib', 'mlflow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_runs_through_its_catalog_onto_disk(
    stage: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MPLBACKEND", "agg")
    entries = catalog_entries()
    for entry in entries.values():
        entry["filepath"] = str(tmp_path / entry["filepath"])
    catalog = DataCatalog.from_config(entries)
    given = {
        "images": stage.images,
        "examples": stage.examples,
        "splits": stage.splits,
        "params:evaluation": EvaluationParams(device="cpu", num_bootstrap_samples=100),
        "params:soft_targets": SoftTargetsParams(),
        "teacher.checkpoints": stage.teacher,
        **{f"{arm}.checkpoints": models for arm, models in stage.students.items()},
    }
    for name, value in given.items():
        catalog[name] = MemoryDataset(value, copy_mode="assign")
    SequentialRunner().run(create_pipeline(ARMS), catalog)

    reporting = tmp_path / "data/08_reporting"
    comparison = json.loads((reporting / "comparison.json").read_text())
    assert set(comparison["gains"]) == {"student_kd"}
    report = (reporting / "report.md").read_text(encoding="utf-8")
    for figure in (name for name in OUTPUTS if name.endswith("_figure")):
        assert (reporting / "figures" / f"{figure}.png").stat().st_size > 5000
        assert f"(figures/{figure}.png)" in report
    metrics = catalog.load("metrics")
    assert metrics["checkpoint"][0] == stage.teacher[0].fingerprint
    predictions = pd.read_parquet(tmp_path / "data/07_model_output/predictions.parquet")
    assert len(predictions) == 5 * 20


def test_a_fingerprint_of_digits_stays_text(tmp_path: Path) -> None:
    entry = catalog_entries()["metrics"] | {"filepath": str(tmp_path / "metrics.csv")}
    catalog = DataCatalog.from_config({"metrics": entry})
    catalog.save("metrics", pd.DataFrame({"checkpoint": ["0012345678901234", "12e4567890123456"]}))
    assert catalog.load("metrics")["checkpoint"].tolist() == [
        "0012345678901234",
        "12e4567890123456",
    ]
