"""The project from its command line, in a temporary copy: the main job, its stages, its options."""

import json
import re
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest
from pandas.testing import assert_frame_equal

ARMS = ("student_kd", "student_baseline", "student_smoothed", "student_pseudo")


def fingerprints(project: Any) -> dict[str, str]:
    found = {}
    for file in sorted((project.data / "06_models").glob("*/*/model.json")):
        found[f"{file.parts[-3]} {file.parts[-2]}"] = json.loads(file.read_text())["fingerprint"]
    return found


def measured(project: Any) -> pd.DataFrame:
    metrics = pd.read_csv(project.data / "08_reporting/metrics.csv", dtype={"checkpoint": str})
    return metrics.drop(columns=[name for name in metrics if name.startswith("cost/")])


def test_the_main_job_ends_with_a_table_of_arms_and_the_reports_path(finished_run: Any) -> None:
    out = finished_run.stdout
    for column in ("accuracy", "NLL", "ECE", "agree", "gain"):
        assert column.lower() in out.lower(), column
    rows = [line for line in out.splitlines() if re.search(r"\d\d?\.\d", line)]
    assert len(rows) >= 1 + len(ARMS)
    (path,) = re.findall(r"\S*08_reporting/report\.html", out)
    report = finished_run.path / path
    assert report.read_text(encoding="utf-8").startswith("<!doctype html>")


def test_the_main_job_logs_its_stages_and_draws_no_bar_without_a_terminal(
    finished_run: Any,
) -> None:
    lines = finished_run.stderr
    for stage in ("ingest", "split_transfer_set", "train_teacher", "cache_soft_targets"):
        assert re.search(rf"\[\d+/19\] .*{stage}", lines), stage
    for arm in ARMS:
        assert re.search(rf"\[\d+/19\] {arm}: train_student", lines), arm
    assert "\r" not in lines
    assert "it/s" not in lines
    assert "█" not in lines


def test_the_main_job_points_to_the_comparison_in_mlflow(finished_run: Any) -> None:
    """By a view that is saved with the experiment: the link opens on it."""
    (line,) = [line for line in finished_run.stderr.splitlines() if "http://" in line]
    assert "`make ui` serves it" in line
    key = re.search(r"viewStateShareKey=([\w-]+)", line)
    assert key is not None
    with sqlite3.connect(finished_run.path / "mlflow.db") as database:
        tags = [row[0] for row in database.execute("SELECT key FROM experiment_tags")]
    database.close()
    assert f"mlflow.sharedViewState.{key[1]}" in tags


def test_the_main_job_leaves_everything_that_the_catalog_names(finished_run: Any) -> None:
    reporting = finished_run.data / "08_reporting"
    comparison = json.loads((reporting / "comparison.json").read_text())
    assert set(comparison["arms"]) == set(ARMS)
    assert set(comparison["gains"]) == set(ARMS) - {"student_baseline"}
    assert comparison["env"] == "smoke"
    for name in ("metrics.csv", "rejected_images.csv", "split_summary.csv", "report.md"):
        assert (reporting / name).is_file(), name
    figures = {path.stem for path in (reporting / "figures").glob("*.png")}
    of_cache = {f"soft_target_{what}_figure" for what in ("entropy", "confidence", "grid")}
    assert figures == of_cache | {
        f"{what}_figure"
        for what in ("accuracy", "reliability", "confusion", "class_gain", "export")
    }
    (kept,) = (finished_run.data / "06_models/.interrupted/teacher").iterdir()
    assert (kept / "complete.json").is_file()


def test_nothing_is_left_outside_the_known_folders(finished_run: Any) -> None:
    known = {
        "conf",
        "src",
        "data",
        "pyproject.toml",
        ".telemetry",
        "mlflow.db",
        "mlartifacts",
        ".viz",
    }
    assert {path.name for path in finished_run.path.iterdir()} <= known


def test_the_same_run_twice_gives_the_same(finished_run: Any, fresh: Any, run_here: Any) -> None:
    """Once as a command, once in a process in which much else has run."""
    assert run_here(fresh, to_nodes=["compare_arms"]).error is None
    assert fingerprints(fresh) == fingerprints(finished_run)
    assert len(fingerprints(fresh)) == 1 + 2 * len(ARMS)
    assert_frame_equal(measured(fresh), measured(finished_run), check_exact=True)


def test_students_train_with_the_teachers_files_deleted(finished: Any, run_here: Any) -> None:
    """A stage by name; the teacher is on another machine."""
    shutil.rmtree(finished.data / "06_models/teacher")
    before = fingerprints(finished)
    assert run_here(finished, ["student_distillation"]).error is None
    assert fingerprints(finished) == before
    assert not (finished.data / "06_models/teacher").exists()


def test_evaluation_alone_finds_its_runs_again(
    finished: Any, finished_run: Any, run_here: Any, fetch_runs: Callable[[Any], list[Any]]
) -> None:
    before = {run.info.run_id: run for run in fetch_runs(finished)}
    outcome = run_here(finished, ["evaluation"], tracked=True, to_nodes=["compare_arms"])
    assert outcome.error is None
    assert outcome.trained == []
    (new,) = [run for run in fetch_runs(finished) if run.info.run_id not in before]
    assert new.data.tags["kd.role"] == "comparison"
    models = {one for one, run in before.items() if run.data.tags["kd.role"] != "comparison"}
    assert set(new.data.tags["kd.compared_runs"].split(",")) == models
    assert_frame_equal(measured(finished), measured(finished_run), check_exact=True)


@pytest.mark.parametrize("stage", ["data_ingest", "transfer_split", "soft_target_caching"])
def test_a_stage_alone_gives_the_same_again(stage: str, finished: Any, run_here: Any) -> None:
    outputs = {
        "data_ingest": ["02_intermediate/examples.parquet", "02_intermediate/images/pixels.npy"],
        "transfer_split": ["03_primary/splits.parquet"],
        "soft_target_caching": ["05_model_input/soft_targets/part-t000-v00000-s00000.parquet"],
    }[stage]
    before = {name: (finished.data / name).read_bytes() for name in outputs}
    for name in outputs:
        (finished.data / name).unlink()
    if stage == "soft_target_caching":
        (finished.data / "05_model_input/soft_targets/manifest.json").unlink()
    outcome = run_here(finished, [stage])
    assert outcome.error is None
    assert {name: (finished.data / name).read_bytes() for name in outputs} == before


@pytest.mark.long
def test_two_runs_at_once_do_not_mix(fresh: Any) -> None:
    """The second is refused at once, commands that only read are free, as are runs after a kill."""
    typed, lock = "kedro run --env=smoke", fresh.data / ".run.lock"
    endless = f"{typed} --params=teacher.training.num_epochs=1000000"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(endless.split(), cwd=fresh.path, env=fresh.environment, **quiet) as first:
        try:
            while not (lock.exists() and lock.read_text()):
                assert first.poll() is None, "it ended before the second began"
                time.sleep(0.05)
            second = fresh.command(f"{typed} --params=student.seed=5")
            assert second.returncode != 0
            assert f"another run writes to {fresh.data} (process {first.pid} on" in second.stderr
            fresh.after("kedro registry list")
            assert first.poll() is None
        finally:
            first.kill()
    fresh.after(f"{typed} --to-nodes=split_transfer_set")


def test_the_registry_lists_every_run_without_heavy_imports(finished_run: Any) -> None:
    listed = finished_run.after("kedro registry list").stdout
    names = re.findall(r"^- (\S+)$", listed, flags=re.MULTILINE)
    assert names == [
        "__default__", "born_again", "compare_groups", "compare_losses", "data_ingest", "distill",
        "distill_controls", "distill_live", "distill_pair", "evaluation", "model_export",
        "soft_target_caching", "student_distillation", "sweep", "teacher_assistant",
        "teacher_training", "transfer_split", "verify_soft_targets",
    ]  # fmt: skip
    done = finished_run.command("kedro registry list", environment={"PYTHONPROFILEIMPORTTIME": "1"})
    imported = set(re.findall(r"\|\s+(\w+)(?:\.|$)", done.stderr, flags=re.MULTILINE))
    assert "kd_pipeline" in imported
    heavy = {"torch", "torchvision", "mlflow", "pandas", "matplotlib", "sklearn"}
    assert imported & heavy == set()


@pytest.mark.parametrize(
    "command",
    [
        "describe-datasets",
        pytest.param("list-patterns", marks=pytest.mark.long),
        pytest.param("resolve-patterns", marks=pytest.mark.long),
    ],
)
def test_the_catalog_can_be_shown(command: str, finished_run: Any) -> None:
    shown = finished_run.after(f"kedro catalog {command}").stdout
    assert "checkpoints" in shown


@pytest.mark.long
@pytest.mark.parametrize(
    "typed",
    [
        "kedro run --pipelines=student_distillation --env=smoke --params=student.num_replicates=2",
        "kedro run --env=smoke --from-nodes=evaluate_models",
        "kedro run --pipelines=evaluation --env=smoke",
        "kedro run --pipeline=student_distillation --env=smoke",
        "kedro run --pipelines=teacher_training,soft_target_caching --env=smoke",
        "kedro run --pipelines=distill --env=smoke --from-nodes=teacher.train_teacher",
        "kedro run --pipelines=distill --env=smoke --to-nodes=split_transfer_set",
        "python -m kd_pipeline --pipelines=transfer_split --env=smoke",
    ],
)
def test_other_commands_leave_the_models_as_they_are(typed: str, finished: Any) -> None:
    before = fingerprints(finished)
    finished.after(typed)
    assert fingerprints(finished) == before


@pytest.mark.long
def test_a_folder_inside_the_project_serves_as_well_as_its_root(finished: Any) -> None:
    inside = type(finished)(finished.path / "src")
    inside.after("kedro run --pipelines=transfer_split --env=smoke")
    assert not (finished.path / "src/data").exists()
