"""`python -m kd_pipeline.resplits`: the same run under several splits of the data, combined.

Each run has a seed of its own, the global `seed`: of split, teacher, students and views together.
"""

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kedro.framework.project import pipelines, settings
from kedro.framework.startup import bootstrap_project

from kd_pipeline.atomic import replace_file, replace_folder
from kd_pipeline.errors import DataError, KdPipelineError, ParameterError
from kd_pipeline.evaluation.page import html_page
from kd_pipeline.evaluation.resplit_report import resplit_report
from kd_pipeline.evaluation.resplits import combine_resplits
from kd_pipeline.evaluation.terminal import resplits_summary
from kd_pipeline.tracking.journal import Journal
from kd_pipeline.tracking.runs import RESPLITS, RunBook, new_group
from kd_pipeline.tracking.sender import Sender
from kd_pipeline.tracking.settings import MLflowParams
from kd_pipeline.tracking.store import locate_store
from kd_pipeline.tracking.unsent import Unsent

SEED_VARIABLE = "KD_SEED"
"""Environment variable that conf/base/globals.yml takes the global seed from."""
_REPORTING = Path("data", "08_reporting")
_COMPARISON, _SETTINGS = "comparison.json", "settings.json"

Run = Callable[[Sequence[str], int, Path], int]
"""Runs `kedro` with these arguments, this seed and in this folder; returns its exit status."""


@dataclass(frozen=True)
class Resplits:
    """What is run again and again, and where its results are kept."""

    project: Path
    env: str | None
    pipeline: str
    params: str

    @property
    def folder(self) -> Path:
        """Of this preset: a folder per seed, and the report."""
        return self.project / _REPORTING / "resplits" / (self.env or "base")

    @property
    def arguments(self) -> list[str]:
        """Of `kedro`."""
        given = {"--env": self.env, "--params": self.params}
        options = [f"{name}={value}" for name, value in given.items() if value]
        return ["run", f"--pipelines={self.pipeline}", *options]

    def settings(self, seed: int) -> dict[str, Any]:
        """What a run with this seed depends on: the pipeline, `--params`, and all parameters."""
        given = {"pipeline": self.pipeline, "params": self.params, "seed": seed}
        with _environment_seed(seed):
            parameters = self.load("parameters")
        settings: dict[str, Any] = json.loads(json.dumps({**given, "parameters": parameters}))
        return settings

    def load(self, kind: str) -> dict[str, Any]:
        """A kind of configuration, as a run with the seed of the environment reads it."""
        source, loading = str(self.project / "conf"), settings.CONFIG_LOADER_ARGS
        loader = settings.CONFIG_LOADER_CLASS(conf_source=source, env=self.env, **loading)
        loaded: dict[str, Any] = loader[kind]
        return loaded


def main(arguments: Sequence[str] | None = None, *, run: Run | None = None) -> int:
    """Run what is missing, combine, write and print; 1 if something is refused or a run fails."""
    parser = argparse.ArgumentParser(prog="python -m kd_pipeline.resplits", description=__doc__)
    parser.add_argument("--num", type=int, default=5, help="runs, with as many seeds")
    parser.add_argument("--env", help="the preset, as of `kedro run`")
    parser.add_argument("--pipeline", default="distill", help="a whole run")
    parser.add_argument("--params", default="", help="as of `kedro run`")
    parser.add_argument("--project", type=Path, default=Path.cwd(), help="the project's root")
    given = parser.parse_args(arguments)
    resplits = Resplits(given.project.resolve(), given.env or None, given.pipeline, given.params)
    try:
        comparisons = run_resplits(resplits, num=given.num, run=run or run_kedro)
        combined = combine_resplits(comparisons)
        sys.stdout.write(f"\n{write_results(resplits.folder, combined)}\n\n")
        log_results(resplits, combined)
    except KdPipelineError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def run_resplits(resplits: Resplits, *, num: int, run: Run) -> dict[int, dict[str, Any]]:
    """The comparisons of `num` runs by seed; those that are kept from before are not run again.

    Raises:
        ParameterError: If `num` or the pipeline cannot be used, or the seed does not vary.
        DataError: If a kept run is of other settings, which is checked before any is run, or a run
            fails.
    """
    if num < 2:
        raise ParameterError("num", "be at least 2: one split has no spread", num)
    bootstrap_project(resplits.project)
    if resplits.pipeline not in pipelines:
        raise ParameterError("pipeline", "be registered", resplits.pipeline, legal=pipelines)
    if "splits" not in (made := pipelines[resplits.pipeline].all_outputs()) or (
        "comparison" not in made
    ):
        rule = "be a whole run, from the split to the comparison"
        raise ParameterError("pipeline", rule, resplits.pipeline)
    first = int(resplits.load("globals")["seed"])
    wanted = {seed: resplits.settings(seed) for seed in range(first, first + num)}
    _check_seeds(wanted, resplits.params)
    missing = [seed for seed, of_run in wanted.items() if not _is_kept(resplits, seed, of_run)]
    for seed in missing:
        sys.stderr.write(f"Resplit {list(wanted).index(seed) + 1} of {num}: seed {seed}\n")
        _run_one(resplits, seed, wanted[seed], run)
    return {seed: _read(resplits.folder / str(seed) / _COMPARISON) for seed in wanted}


def _check_seeds(wanted: dict[int, dict[str, Any]], params: str) -> None:
    for name in ("transfer_split", "student"):
        found = [of_run["parameters"][name].get("seed") for of_run in wanted.values()]
        given = re.search(rf"(?:^|,)\s*{name}\.seed\s*[=:]\s*([^,]*)", params)
        if given or len({str(seed) for seed in found}) < len(wanted):
            rule = (
                "be ${globals:seed}, and `seed` in globals.yml ${environment:KD_SEED,0}, so that "
                "each resplit has a split and students of its own"
            )
            raise ParameterError(f"{name}.seed", rule, given[1] if given else found[0])


def _is_kept(resplits: Resplits, seed: int, wanted: dict[str, Any]) -> bool:
    """Whether a run with these settings is kept.

    Raises:
        DataError: If one with other settings is.
    """
    folder = resplits.folder / str(seed)
    if not folder.exists():
        return False
    if _read(folder / _SETTINGS) != wanted:
        raise DataError(
            f"{folder / _SETTINGS} must have the settings of now, got others: remove "
            f"{resplits.folder} or move it away to begin anew"
        )
    return True


def _run_one(resplits: Resplits, seed: int, of_run: dict[str, Any], run: Run) -> None:
    """Run with a seed, and keep its comparison beside its settings."""
    made = resplits.project / _REPORTING / _COMPARISON
    if status := run(resplits.arguments, seed, resplits.project):
        raise DataError(
            f"the run with seed {seed} failed with status {status}; those before it are kept, and "
            "the same command goes on here"
        )
    with replace_folder(resplits.folder / str(seed)) as folder:
        (folder / _COMPARISON).write_bytes(made.read_bytes())
        (folder / _SETTINGS).write_text(json.dumps(of_run, indent=2), encoding="utf-8")


def run_kedro(arguments: Sequence[str], seed: int, project: Path) -> int:
    """Run Kedro in a process of its own, with the seed in its environment."""
    command = [sys.executable, "-m", "kedro", *arguments]
    environment = {**os.environ, SEED_VARIABLE: str(seed)}
    done = subprocess.run(command, cwd=project, env=environment, check=False)  # noqa: S603
    return done.returncode


def write_results(folder: Path, combined: dict[str, Any]) -> str:
    """Write resplits.json, resplits.md and resplits.html; return what the terminal shows."""
    report = resplit_report(combined)
    contents = {
        "resplits.json": json.dumps(combined, indent=2, allow_nan=False),
        "resplits.md": report,
        "resplits.html": html_page(report, {}),
    }
    for name, content in contents.items():
        with replace_file(folder / name) as file:
            file.write_text(content, encoding="utf-8")
    return resplits_summary(combined, os.path.relpath(folder / "resplits.html"))


def log_results(resplits: Resplits, combined: dict[str, Any]) -> None:
    """Log the combination to MLflow as a run named `resplits`, unless `mlflow.yml` disables it."""
    params = MLflowParams.model_validate(resplits.load("mlflow"))
    if not params.enabled:
        return
    store, group = locate_store(resplits.project, params), new_group()
    unsent = Unsent(resplits.project / "data" / "09_tracking" / f"unsent-{group}.jsonl", store)
    journal = Journal(Sender(store), unsent, max_wait_seconds=params.max_wait_seconds)
    tags = {"kd.group": group, "kd.env": combined["env"], "kd.pipeline": resplits.pipeline}
    book = RunBook(journal, tags, models="none", stage=RESPLITS)
    book.log_resplits(combined)
    for file in sorted(resplits.folder.glob("resplits.*")):
        book.log_file(file.name, file.read_bytes())
    book.end("FINISHED")


@contextmanager
def _environment_seed(seed: int) -> Iterator[None]:
    before = os.environ.get(SEED_VARIABLE)
    os.environ[SEED_VARIABLE] = str(seed)
    try:
        yield
    finally:
        if before is None:
            del os.environ[SEED_VARIABLE]
        else:
            os.environ[SEED_VARIABLE] = before


def _read(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


if __name__ == "__main__":
    sys.exit(main())
