"""Where a run's time goes, by stage: wall and CPU seconds of a whole run in a project of its own.

    python -m bench.stages --env smoke

start: from the interpreter to the first node, torch's import included; figures: their drawing and
saving; tracking: what the run waits for MLflow, whose own process is not counted.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

STARTED = time.perf_counter()
ROOT = Path(__file__).parents[1]
STAGES = {
    "ingest_image_source": "ingest",
    "split_transfer_set": "ingest",
    "train_teacher": "teacher",
    "cache_soft_targets": "cache",
    "train_student": "students",
    "evaluate_models": "evaluation",
    "compare_arms": "evaluation",
    "write_report": "evaluation",
    "summarise_soft_targets": "figures",
    "draw_soft_targets": "figures",
    "draw_figures": "figures",
}
"""By the last part of a node's name; other nodes are `rest`."""
ORDER = ("start", *dict.fromkeys(STAGES.values()), "tracking", "rest")


class StageTimer:
    """A Kedro hook that adds what has passed to the stage that it was spent in."""

    def __init__(self) -> None:
        """The process is in its start."""
        self.spent: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        self._stage, self._at = "start", (STARTED, 0.0)

    def enter(self, stage: str) -> None:
        """End the stage that the process was in, and begin another."""
        now = (time.perf_counter(), time.process_time())
        for index in (0, 1):
            self.spent[self._stage][index] += now[index] - self._at[index]
        self._stage, self._at = stage, now

    def table(self) -> dict[str, dict[str, float]]:
        """Seconds by stage, in the order in which they are shown."""
        rows = {stage: self.spent[stage] for stage in ORDER if stage in self.spent}
        rows["all"] = [sum(column) for column in zip(*rows.values(), strict=True)]
        return {stage: {"wall": wall, "cpu": cpu} for stage, (wall, cpu) in rows.items()}


def main(env: str | None = None) -> dict[str, Any]:
    """Measure a run in a new process and a new project, and print the table."""
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder, "project")
        for name in ("conf", "src"):
            shutil.copytree(ROOT / name, project / name)
        for name in ("pyproject.toml", ".telemetry"):
            shutil.copy(ROOT / name, project / name)
        path = os.pathsep.join([str(project / "src"), str(ROOT)])
        environment = os.environ | {"PYTHONPATH": path}
        environment.pop("MLFLOW_TRACKING_URI", None)
        result = project / "stages.json"
        command = [sys.executable, "-m", "bench.stages", "--into", str(result)]
        command += [] if env is None else ["--env", env]
        done = subprocess.run(
            command, cwd=project, env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(done.stderr)
        measured: dict[str, Any] = json.loads(result.read_text())
    print(f"{'stage':12}{'wall s':>9}{'CPU s':>9}")
    for stage, row in measured.items():
        print(f"{stage:12}{row['wall']:9.1f}{row['cpu']:9.1f}")
    return measured


def _run(env: str | None) -> dict[str, Any]:
    """Run the project in the working directory, in this process."""
    from kedro.framework.hooks import hook_impl
    from kedro.framework.project import settings
    from kedro.framework.session import KedroSession
    from kedro.framework.startup import bootstrap_project

    timer = StageTimer()

    class Hooks:
        @hook_impl(tryfirst=True)
        def before_dataset_loaded(self, node: Any) -> None:
            timer.enter(_stage(node))

        @hook_impl(tryfirst=True)
        def before_node_run(self, node: Any) -> None:
            timer.enter(_stage(node))

        @hook_impl(tryfirst=True)
        def after_node_run(self) -> None:
            timer.enter("tracking")

        @hook_impl
        def before_dataset_saved(self, dataset_name: str, node: Any) -> None:
            timer.enter("figures" if dataset_name.endswith("figure") else _stage(node))

        @hook_impl(tryfirst=True)
        def after_pipeline_run(self) -> None:
            timer.enter("tracking")

    project = Path.cwd()
    bootstrap_project(project)
    settings.set("HOOKS", (*settings.HOOKS, Hooks()))
    with KedroSession.create(project_path=project, env=env) as session:
        session.run(pipeline_names=["distill"])
    timer.enter("rest")
    return timer.table()


def _stage(node: Any) -> str:
    return STAGES.get(node.name.rpartition(".")[2], "rest")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--env", help="a preset, such as smoke; none is the default run")
    # Of the process that `main` starts.
    parser.add_argument("--into", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.into is None:
        main(given.env)
    else:
        given.into.write_text(json.dumps(_run(given.env)))
