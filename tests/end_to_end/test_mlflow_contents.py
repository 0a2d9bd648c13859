"""The contents of MLflow after the main job, and after one that failed."""

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from kd_pipeline.errors import CheckpointError

ARMS = ("student_kd", "student_baseline", "student_smoothed", "student_pseudo")
TEST_METRICS = {
    f"test/{name}"
    for name in (
        "accuracy", "top5_accuracy", "errors", "nll", "ece", "brier", "teacher_agreement",
        "teacher_kl", "nll_calibrated", "ece_calibrated",
    )
}  # fmt: skip
COSTS = {"model/parameters", "model/macs", "model/size_bytes", "cost/train_seconds"}
TRAINING_METRICS = {
    "train/loss", "train/hard_loss", "train/soft_loss", "train/accuracy",
    "train/examples_per_second", "validation/loss", "validation/accuracy",
}  # fmt: skip
GAINS = {
    "accuracy", "accuracy_ci_low", "accuracy_ci_high", "p_value", "p_value_holm", "nll",
    "nll_calibrated",
}  # fmt: skip

Fetch = Callable[[Any], list[Any]]


@pytest.fixture(scope="module")
def runs(finished_run: Any, fetch_runs: Fetch) -> dict[str, Any]:
    """Runs by name: `<role>-<replicate>` and `comparison`."""
    return {run.info.run_name: run for run in fetch_runs(finished_run)}


@pytest.fixture
def students(runs: dict[str, Any]) -> list[Any]:
    return [run for name, run in runs.items() if name.startswith("student_")]


def test_runs_are_flat_one_per_model_and_one_of_the_comparison(runs: dict[str, Any]) -> None:
    expected = {"teacher-0", "comparison"} | {f"{arm}-{r}" for arm in ARMS for r in (0, 1)}
    assert set(runs) == expected
    for run in runs.values():
        assert "mlflow.parentRunId" not in run.data.tags
        assert run.info.status == "FINISHED"


def test_tags_group_the_runs(runs: dict[str, Any], finished_run: Any) -> None:
    roles = Counter(run.data.tags["kd.role"] for run in runs.values())
    assert roles == {"teacher": 1, "comparison": 1, **dict.fromkeys(ARMS, 2)}
    assert len({run.data.tags["kd.group"] for run in runs.values()}) == 1
    for name, run in runs.items():
        assert run.data.tags["kd.pipeline"] == "distill"
        assert run.data.tags["kd.env"] == "smoke"
        if name != "comparison":
            assert run.data.tags["kd.replicate"] == name.rpartition("-")[2]
    comparison = json.loads((finished_run.data / "08_reporting/comparison.json").read_text())
    assert comparison["group"] == runs["comparison"].data.tags["kd.group"]


def test_every_arm_has_the_same_parameters_and_shares_all_but_its_own(students: list[Any]) -> None:
    """The design's sixth and ninth mistakes would show here as columns that differ."""
    keys = [set(run.data.params) for run in students]
    assert all(found == keys[0] for found in keys)
    assert {"soft_weight", "temperature", "label_smoothing", "seed", "batch_size"} <= keys[0]
    assert not any(key.startswith(("student.", "arm.", "training.")) for key in keys[0])
    different = {key for key in keys[0] if len({run.data.params[key] for run in students}) > 1}
    assert different <= {
        "soft_weight", "soft_loss", "temperature", "label_smoothing",
        "num_training_rows", "learnt_from",
    }  # fmt: skip
    by_role = {run.data.tags["kd.role"]: run.data.params for run in students}
    assert float(by_role["student_baseline"]["soft_weight"]) == 0
    assert float(by_role["student_kd"]["soft_weight"]) == 1
    assert by_role["student_baseline"]["learnt_from"] == "labels"
    assert by_role["student_kd"]["learnt_from"] == "teacher"


def test_a_model_has_the_metrics_that_the_design_names(
    runs: dict[str, Any], finished_run: Any
) -> None:
    metrics = pd.read_csv(finished_run.data / "08_reporting/metrics.csv")
    for row in metrics.to_dict("records"):
        found = runs[f"{row['role']}-{row['replicate']}"].data.metrics
        assert set(found) | {"train/accuracy"} >= TEST_METRICS | COSTS | TRAINING_METRICS
        for name in TEST_METRICS:
            assert found[name] == pytest.approx(row[name]), name


def test_curves_have_a_point_per_epoch(runs: dict[str, Any], finished_run: Any) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{finished_run.path}/mlflow.db")
    for name, num_epochs in (("student_kd-1", 3), ("teacher-0", 4)):
        points = client.get_metric_history(runs[name].info.run_id, "train/loss")
        assert [point.step for point in points] == list(range(1, num_epochs + 1))


def test_the_comparison_has_the_gains_figures_and_the_report(
    runs: dict[str, Any], finished_run: Any
) -> None:
    run = runs["comparison"]
    names = {f"gain/{name}" for name in GAINS}
    names |= {f"gain/{arm}/{name}" for arm in ARMS[2:] for name in GAINS}
    assert names <= set(run.data.metrics)
    comparison = json.loads((finished_run.data / "08_reporting/comparison.json").read_text())
    gain = comparison["gains"]["student_kd"]["accuracy"]
    assert run.data.metrics["gain/accuracy"] == pytest.approx(gain["mean"])
    folder = Path(run.info.artifact_uri.removeprefix("file://"))
    assert {path.stem for path in (folder / "figures").iterdir()} == {
        "accuracy_figure", "reliability_figure", "confusion_figure", "class_gain_figure",
        "soft_target_entropy_figure", "soft_target_confidence_figure", "soft_target_grid_figure",
    }  # fmt: skip
    summary = pd.read_csv(finished_run.data / "08_reporting/soft_target_summary.csv")
    entropy = run.data.metrics["soft_targets/entropy_at_4"]
    assert entropy == pytest.approx(summary["entropy_at_4"].iloc[-1])
    for table in ("soft_target_summary", "soft_target_confusions"):
        logged = (folder / f"{table}.csv").read_bytes()
        assert logged == (finished_run.data / f"08_reporting/{table}.csv").read_bytes()
    report = (finished_run.data / "08_reporting/report.md").read_text(encoding="utf-8")
    assert (folder / "report.md").read_text(encoding="utf-8") == report
    assert json.loads((folder / "comparison.json").read_text()) == comparison


def test_inputs_are_identified_by_their_digests(runs: dict[str, Any], finished_run: Any) -> None:
    images = json.loads((finished_run.data / "02_intermediate/images/images.json").read_text())
    for name, run in runs.items():
        if name == "comparison":
            continue
        used = run.inputs.dataset_inputs
        contexts = {tag.value for item in used for tag in item.tags if tag.key.endswith("context")}
        assert contexts == {"training", "evaluation"}
        digests = {item.dataset.digest for item in used}
        assert any(images["fingerprint"].startswith(digest) for digest in digests)


def test_the_best_model_of_each_role_lies_beside_the_database(
    runs: dict[str, Any], finished_run: Any
) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{finished_run.path}/mlflow.db")
    experiment = next(iter(runs.values())).info.experiment_id
    logged = client.search_logged_models([experiment])
    expected = {runs["teacher-0"].info.run_id}
    for arm in ARMS:
        accuracies = [runs[f"{arm}-{n}"].data.metrics["validation/accuracy"] for n in (0, 1)]
        expected.add(runs[f"{arm}-{accuracies.index(max(accuracies))}"].info.run_id)
    assert Counter(model.source_run_id for model in logged) == dict.fromkeys(expected, 1)
    for model in logged:
        assert model.status == "READY"
        folder = Path(model.artifact_location.removeprefix("file://"))
        assert folder.is_relative_to(finished_run.path / "mlartifacts")
        assert not list(folder.rglob("*.pkl"))


@pytest.mark.long
def test_every_model_loads_in_a_process_without_this_project(
    runs: dict[str, Any], finished_run: Any, tmp_path: Path
) -> None:
    """As `models:/<id>`; its predictions are those that were evaluated."""
    code = """
import sys, json, warnings
warnings.simplefilter("ignore")
import mlflow, numpy as np
mlflow.set_tracking_uri(sys.argv[1])
client = mlflow.MlflowClient()
experiment = client.get_experiment_by_name("kd_pipeline")
pixels = np.load(sys.argv[2])
found = {}
for model in client.search_logged_models([experiment.experiment_id]):
    loaded = mlflow.pyfunc.load_model(f"models:/{model.model_id}")
    assert loaded.metadata.signature is not None
    name = client.get_run(model.source_run_id).info.run_name
    found[name] = np.asarray(loaded.predict(pixels)).argmax(axis=1).tolist()
assert not [name for name in sys.modules if name.startswith(("kd_pipeline", "kedro"))]
print(json.dumps(found))
"""
    pixels, ids = pixels_of_test_set(finished_run)
    np.save(tmp_path / "pixels.npy", pixels)
    done = subprocess.run(
        [sys.executable, "-c", code, f"sqlite:///{finished_run.path}/mlflow.db",
         str(tmp_path / "pixels.npy")],
        capture_output=True, text=True, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    table = pd.read_parquet(finished_run.data / "07_model_output/predictions.parquet")
    assert len(found) == 1 + len(ARMS)
    for name, predicted in found.items():
        role, _, replicate = name.rpartition("-")
        rows = table[(table["role"] == role) & (table["replicate"] == int(replicate))]
        assert rows.set_index("example_id")["predicted"][ids].tolist() == predicted, name


def pixels_of_test_set(project: Any) -> Any:
    folder = project.data / "02_intermediate/images"
    splits = pd.read_parquet(project.data / "03_primary/splits.parquet")
    ids = splits.loc[splits["role"] == "test", "example_id"].to_numpy()
    rows = np.searchsorted(np.load(folder / "example_ids.npy"), ids)
    return np.load(folder / "pixels.npy")[rows], ids


def test_a_failure_marks_what_was_open_as_failed(
    finished: Any, run_here: Any, fetch_runs: Fetch
) -> None:
    part = finished.data / "06_models/student_kd/1/model.safetensors"
    damaged = bytearray(part.read_bytes())
    damaged[-1] ^= 1
    part.write_bytes(damaged)
    before = {run.info.run_id for run in fetch_runs(finished)}
    message = run_here(finished, ["evaluation"], tracked=True).refused(CheckpointError)
    assert "student_kd/1 is damaged: its fingerprint differs" in message
    (run,) = [run for run in fetch_runs(finished) if run.info.run_id not in before]
    assert run.data.tags["kd.role"] == "comparison"
    assert run.info.status == "FAILED"
    assert "damaged" in run.data.tags["kd.error"]


def test_a_training_that_fails_is_failed_and_the_others_stay_finished(
    finished: Any, run_here: Any, fetch_runs: Fetch
) -> None:
    before = {run.info.run_id for run in fetch_runs(finished)}
    arguments = {"optimiser": {"name": "SGD", "arguments": {"lr": 1e30}}}
    params = {"student": {"training": arguments}}
    outcome = run_here(finished, ["student_distillation"], tracked=True, params=params)
    assert type(outcome.error).__name__ == "TrainingDivergedError"
    runs = [run for run in fetch_runs(finished) if run.info.run_id not in before]
    # Both replicates: they train as one network.
    assert {run.data.tags["kd.replicate"]: run.info.status for run in runs} == {
        "0": "FAILED",
        "1": "FAILED",
    }
    assert all("TrainingDivergedError" in run.data.tags["kd.error"] for run in runs)


def test_a_tracking_server_that_is_away_costs_a_warning_and_the_run_goes_on(
    finished: Any, run_here: Any, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    params = {"student": {"num_replicates": 1}}
    outcome = run_here(finished, ["student_distillation"], tracked=True, params=params)
    assert outcome.error is None
    assert outcome.trained == [0] * len(ARMS)
    warned = [r for r in caplog.records if r.levelname == "WARNING" and "MLflow" in r.message]
    assert len(warned) == 1
    (kept,) = (finished.data / "09_tracking").glob("unsent-*.jsonl")
    assert kept.read_text().count('"kind": "close_run"') == len(ARMS)
