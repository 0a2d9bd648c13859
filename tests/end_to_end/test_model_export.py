"""`kedro run --pipelines=model_export` after a run, and the export as the last stage of one."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from kd_pipeline.errors import ExportError, ParameterError

FAST = {"latency": {"num_warmup": 1, "num_repeats": 2, "batch_sizes": [1]}}


def set_export(project: Any, **settings: Any) -> None:
    block = {"model_export": {"targets": ["onnx", "c"], **FAST, **settings}}
    file = project.path / "conf/smoke/parameters_export.yml"
    file.write_text(yaml.safe_dump(block), encoding="utf-8")


def logits_of(file: Any, pixels: np.ndarray) -> np.ndarray:
    """As a device does it: the file and raw pixels, nothing else."""
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    logits: np.ndarray = session.run(["logits"], {"pixels": pixels})[0]
    return logits


@pytest.fixture
def exported(finished: Any, run_here: Any) -> Any:
    set_export(finished, models=["student_kd", "student_baseline", "teacher"], replicates="all")
    outcome = run_here(finished, ["model_export"], tracked=True)
    assert outcome.error is None, outcome.error
    return finished


def test_the_files_of_a_finished_run_are_made_proved_and_logged(
    exported: Any, fetch_runs: Callable[[Any], list[Any]]
) -> None:
    folder = exported.data / "06_models/export"
    names = {"card.json", "model.c", "model.h", "model.int8.onnx", "model.onnx", "model_card.md"}
    for student in ("student_kd", "student_baseline"):
        assert {path.name for path in (folder / student).iterdir()} == names
    assert {path.name for path in folder.iterdir()} == {"student_kd", "student_baseline"}

    card = json.loads((folder / "student_kd/card.json").read_text())
    predictions = pd.read_parquet(exported.data / "07_model_output/export_predictions.parquet")
    counts = predictions.groupby(["role", "replicate", "target", "precision"]).size()
    assert set(counts) == {card["num_test_examples"]}
    # Checkpoint, ONNX twice and C of two students with two replicates; no C of the teacher.
    assert len(counts) == 2 * 2 * 4 + 3

    comparison = json.loads((exported.data / "08_reporting/export_comparison.json").read_text())
    assert set(comparison["int8"]) == {"onnx int8", "c int8"}
    assert comparison["int8"]["c int8"]["cost_difference"]["replicates"] == 2

    pixels = np.load(exported.data / "02_intermediate/images/pixels.npy")
    ids = np.load(exported.data / "02_intermediate/images/example_ids.npy")
    rows = predictions.query(
        "role == 'student_kd' and target == 'onnx' and precision == 'int8' "
        f"and replicate == {card['replicate']}"
    )
    raw = pixels[np.searchsorted(ids, rows["example_id"])]
    predicted = logits_of(folder / "student_kd/model.int8.onnx", raw).argmax(axis=1)
    assert (predicted == rows["predicted"]).all()

    runs = {run.info.run_name: run for run in fetch_runs(exported)}
    measured = runs[f"student_kd-{card['replicate']}"].data.metrics
    int8 = next(f for f in card["files"] if f["target"] == "c")
    assert measured["export/c_int8/accuracy"] == pytest.approx(int8["accuracy"])
    assert measured["export/c_int8/flash_bytes"] == int8["flash_bytes"]
    assert "export/onnx_int8/cost_difference" in runs["model_export"].data.metrics
    assert runs["model_export"].info.status == "FINISHED"


def test_what_cannot_be_exported_is_refused_by_name(finished: Any, run_here: Any) -> None:
    set_export(finished, models=["student_kdd"])
    message = run_here(finished, ["model_export"]).refused(ParameterError)
    assert "`model_export.models` must be models that were trained" in message
    set_export(finished, budget_bytes=1000)
    message = run_here(finished, ["model_export"]).refused(ParameterError)
    assert "`model_export.budget_bytes` must be at least" in message
    assert not (finished.data / "06_models/export/student_kd").exists()


def test_a_budget_that_no_file_of_this_kind_can_hold_stops_a_whole_run_before_training(
    fresh: Any, run_here: Any
) -> None:
    set_export(fresh, enabled=True, targets=["onnx"], budget_bytes=1500)
    message = run_here(fresh, ["distill"]).refused(ExportError)
    assert "`model_export.budget_bytes` must be at least what model.int8.onnx" in message


@pytest.mark.long
def test_a_whole_run_ends_with_the_files_and_their_report(fresh: Any, run_here: Any) -> None:
    set_export(fresh, enabled=True)
    outcome = run_here(fresh, ["distill"])
    assert outcome.error is None, outcome.error
    report = (fresh.data / "08_reporting/export_report.md").read_text(encoding="utf-8")
    assert "## Exported files" in report
    assert "Exported: " in outcome.stdout
    assert (fresh.data / "06_models/export/student_kd/model.c").is_file()
