"""Evaluation through its wiring and its catalog onto disk; tests/test_wiring.py has the names."""

import base64
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from kedro.io import DataCatalog, MemoryDataset
from kedro.runner import SequentialRunner

from kd_pipeline.errors import ParameterError
from kd_pipeline.pipelines.evaluation import create_pipeline

ROOT = Path(__file__).parents[3]
STUDENTS = ("assistant", "student_assisted", "student_kd", "student_baseline")
DATASETS = {
    **{name: name for name in ("images", "examples", "splits")},
    "params": "params:evaluation",
    "soft_target_params": "params:soft_targets",
    "teacher_params": "params:teacher",
}
FIGURES = ("accuracy_figure", "reliability_figure", "confusion_figure", "class_gain_figure")


def catalog_entries() -> dict[str, Any]:
    text = (ROOT / "conf/base/catalog_evaluation.yml").read_text()
    entries: dict[str, Any] = yaml.safe_load(text)
    return {name: entry for name, entry in entries.items() if "filepath" in entry}


def test_the_baseline_is_needed() -> None:
    with pytest.raises(ParameterError, match="`students` must hold student_baseline"):
        create_pipeline(["student_kd"])


def test_the_registry_does_not_pay_for_torch_and_matplotlib() -> None:
    code = (
        "import sys, kd_pipeline.pipeline_registry as registry; registry.register_pipelines();"
        "print([m for m in ('torch', 'pandas', 'matplotlib', 'mlflow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_runs_through_its_catalog_onto_disk(
    given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MPLBACKEND", "agg")
    entries = catalog_entries()
    for entry in (entry for entry in entries.values() if "filepath" in entry):
        entry["filepath"] = str(tmp_path / entry["filepath"])
    catalog = DataCatalog.from_config(entries)
    for argument, value in given.items():
        name = DATASETS.get(argument, f"{argument}.checkpoints")
        catalog[name] = MemoryDataset(value, copy_mode="assign")
    catalog["run_identity"] = {"group": "g", "env": "base"}
    SequentialRunner().run(create_pipeline(STUDENTS), catalog)

    reporting = tmp_path / "data/08_reporting"
    comparison = json.loads((reporting / "comparison.json").read_text())
    assert set(comparison["gains"]) == {"student_assisted", "student_kd"}
    assert comparison["learnt_from"]["student_assisted"] == "assistant"
    report = (reporting / "report.md").read_text(encoding="utf-8")
    page = (reporting / "report.html").read_text(encoding="utf-8")
    assert report.startswith("# Did distillation help?")
    for figure in FIGURES:
        content = (reporting / "figures" / f"{figure}.png").read_bytes()
        assert len(content) > 5000
        assert f"(figures/{figure}.png)" in report
        assert base64.b64encode(content).decode() in page
    metrics = catalog.load("metrics")
    assert metrics["checkpoint"][0] == given["teacher"][0].fingerprint
    assert metrics["role"].unique().tolist() == ["teacher", *STUDENTS]
    predictions = pd.read_parquet(tmp_path / "data/07_model_output/predictions.parquet")
    num_test = int((given["splits"]["role"] == "test").sum())
    assert comparison["method"]["num_test_examples"] == num_test
    assert len(predictions) == (1 + 1 + 3 * 2) * num_test


def test_a_fingerprint_of_digits_stays_text(tmp_path: Path) -> None:
    entry = catalog_entries()["metrics"] | {"filepath": str(tmp_path / "metrics.csv")}
    catalog = DataCatalog.from_config({"metrics": entry})
    catalog.save("metrics", pd.DataFrame({"checkpoint": ["0012345678901234", "12e4567890123456"]}))
    assert catalog.load("metrics")["checkpoint"].tolist() == [
        "0012345678901234",
        "12e4567890123456",
    ]
