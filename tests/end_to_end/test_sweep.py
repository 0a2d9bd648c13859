"""A sweep as users run it: what it writes, that its preset runs, and that a kill loses nothing."""

import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

LR = "student.training.optimiser.arguments.lr"
FIGURES = [f"sweep_{what}_figure.png" for what in ("history", "importance", "slice")]


def table(project: Any, name: str = "sweep") -> pd.DataFrame:
    return pd.read_csv(project.data / f"08_reporting/{name}.csv")


def test_a_sweep_leaves_tables_figures_runs_and_a_preset(
    finished: Any, run_here: Callable[..., Any], fetch_runs: Callable[[Any], list[Any]]
) -> None:
    before = {run.info.run_id for run in fetch_runs(finished)}
    metrics = (finished.data / "08_reporting/metrics.csv").read_bytes()
    outcome = run_here(finished, ["sweep"], tracked=True)
    assert outcome.error is None, outcome.error
    trials = table(finished)
    assert trials["arm"].value_counts().to_dict() == {"student_kd": 3, "student_baseline": 3}
    best = table(finished, "sweep_best_values").set_index(["arm", "parameter"])
    assert best.loc[("student_kd", LR), "in_preset"] == best.loc[("student_baseline", LR), "best"]
    for name in FIGURES:
        assert (finished.data / "08_reporting/figures" / name).stat().st_size > 1000
    runs = [run for run in fetch_runs(finished) if run.info.run_id not in before]
    tried = [run for run in runs if "kd.trial" in run.data.tags]
    assert len(tried) == 6
    assert len({run.data.tags["kd.sweep"] for run in tried}) == 1
    by_role = {(run.data.tags["kd.role"], int(run.data.tags["kd.trial"])): run for run in tried}
    for row in trials.itertuples():
        run = by_role[(row.arm, row.trial)]
        assert run.data.tags["kd.trial_state"] == row.state
        assert "mlflow.parentRunId" not in run.data.tags
        assert run.info.status == "FINISHED"
        assert "validation/accuracy" in run.data.metrics
        assert "temperature" in run.data.params
    lr = [float(run.data.params["optimiser.arguments.lr"]) for run in by_role.values()]
    assert sorted(lr) == pytest.approx(sorted(trials[LR]))
    # The comparison of the finished run, with its test set, is as it was.
    assert (finished.data / "08_reporting/metrics.csv").read_bytes() == metrics
    assert (finished.path / "conf/sweep_best/parameters_sweep_best.yml").exists()


def workers(project: Any) -> list[Path]:
    """Processes of joblib that run in a project, by their folder in /proc."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            here = (process / "cwd").resolve() == project.path.resolve()
            if here and b"--process-name" in (process / "cmdline").read_bytes():
                found.append(process)
    return found


@pytest.mark.long
@pytest.mark.timeout(900)
def test_the_preset_runs_and_the_other_choice_trains_nothing(finished: Any) -> None:
    finished.after("kedro run --pipelines=sweep --env=smoke")
    best = table(finished, "sweep_best_values").set_index(["arm", "parameter"])["best"]
    ran = finished.after("kedro run --pipelines=distill --env=sweep_best --tags=students")
    assert "student_kd" in ran.stdout and "train_teacher" not in ran.stdout
    model = finished.data / "06_models/student_kd/0/model.json"
    assert str(best[("student_baseline", LR)]) in model.read_text()
    finished.after(
        "kedro run --pipelines=sweep --env=smoke "
        "--params=sweep.shared_from=student_kd,sweep.preset=sweep_best_kd"
    )
    written = finished.path / "conf/sweep_best_kd/parameters_sweep_best_kd.yml"
    assert f"lr: {best[('student_kd', LR)]}" in written.read_text()
    assert len(table(finished)) == 6


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_sweep_killed_in_its_processes_goes_on(finished: Any) -> None:
    typed = (
        "kedro run --pipelines=sweep --env=smoke "
        "--params=sweep.num_trials=5,sweep.num_processes=2,student.training.num_epochs=200"
    )
    journal = finished.data / "09_tracking/sweep/trials.log"
    process = subprocess.Popen(
        typed.split(), cwd=finished.path, env=finished.environment,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 240
        # A trial has ended and others are under way.
        while not (journal.exists() and '"seconds"' in journal.read_text()):
            assert process.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    deadline = time.monotonic() + 240
    while workers(finished):
        assert time.monotonic() < deadline, "a process goes on training for a run that is gone"
        time.sleep(0.2)
    finished.after(typed)
    trials = table(finished)
    assert trials["arm"].value_counts().to_dict() == {"student_kd": 5, "student_baseline": 5}
    assert not list((finished.data / "09_tracking/sweep/.interrupted").glob("*"))
