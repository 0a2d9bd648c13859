"""Tells MLflow what a Kedro run does: the events of training, and the outputs of its nodes."""

import atexit
import getpass
import io
import json
import logging
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from kedro.config import MissingConfigException
from kedro.framework.context import KedroContext
from kedro.framework.hooks import hook_impl
from kedro.pipeline import Pipeline
from kedro.pipeline.node import Node
from pydantic import BaseModel, ConfigDict

from kd_pipeline import events
from kd_pipeline.errors import our_cause
from kd_pipeline.hooks.inputs import InputFacts
from kd_pipeline.hooks.training_guard import CHECKPOINTS, training_nodes
from kd_pipeline.tracking.journal import Journal
from kd_pipeline.tracking.operations import DatasetFacts
from kd_pipeline.tracking.runs import RunBook, new_group
from kd_pipeline.tracking.sender import Sender
from kd_pipeline.tracking.store import Store, locate_store, remember_store
from kd_pipeline.tracking.unsent import Unsent, find_unsent

logger = logging.getLogger(__name__)

# Of the arms, and of a chain.
METRICS = ("metrics", "hop_metrics")
COMPARISONS = ("comparison", "hop_comparison")
REPORTS = ("report", "hop_report")
HOP_TABLE = "hop_table"
SOFT_TARGET_SUMMARY = "soft_target_summary"
SOFT_TARGET_TABLES = (SOFT_TARGET_SUMMARY, "soft_target_confusions")
EVALUATION = "params:evaluation"
UNSENT_FOLDER = Path("data", "09_tracking")


class MLflowSettings(BaseModel):
    """`mlflow.yml`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    enabled: bool = True
    tracking_uri: str | None = None
    experiment: str = "kd_pipeline"


class MLflowHook:
    """Keeps MLflow up to date; see `RunBook` for what is logged where."""

    def __init__(self) -> None:
        """Nothing is opened, and mlflow not imported, before a pipeline runs."""
        self._settings = MLflowSettings(enabled=False)
        self._project = Path.cwd()
        self._env = "base"
        self._book: RunBook | None = None
        self._journal: Journal | None = None
        self._forget()

    def _forget(self) -> None:
        self._facts = InputFacts()
        self._role = ""
        self._node_name = ""
        self._inputs: Mapping[str, Any] = {}
        self._datasets: list[DatasetFacts] | None = None

    @hook_impl
    def after_context_created(self, context: KedroContext) -> None:
        """Read `mlflow.yml`; without one its defaults hold."""
        self._project = Path(context.project_path)
        self._env = context.env or "base"
        try:
            given = context.config_loader["mlflow"]
        except MissingConfigException:
            given = {}
        self._settings = MLflowSettings.model_validate(given)
        # Teachers may be fetched from it whether or not this run is logged.
        remember_store(self._store())

    @hook_impl
    def before_pipeline_run(self, run_params: dict[str, Any], pipeline: Pipeline) -> None:
        """Begin a group of runs, if this pipeline makes anything that belongs into MLflow."""
        self._abandon()
        outputs = pipeline.all_outputs()
        compares = not outputs.isdisjoint(COMPARISONS)
        trains = bool(training_nodes(pipeline))
        caches = any(_last(name) == SOFT_TARGET_SUMMARY for name in outputs)
        tracked = compares or trains or caches or not outputs.isdisjoint(METRICS)
        if not self._settings.enabled or not tracked:
            return
        self._begin(",".join(run_params.get("pipeline_names") or ["__default__"]))
        if compares and self._book is not None:
            self._book.open_comparison()

    def _store(self) -> Store:
        settings = self._settings
        return locate_store(
            self._project, uri=settings.tracking_uri, experiment=settings.experiment
        )

    def _begin(self, pipeline_name: str) -> None:
        folder, store = self._project / UNSENT_FOLDER, self._store()
        if waiting := find_unsent(folder):
            hint = "`python -m kd_pipeline.tracking` sends them"
            logger.info("%d earlier runs wait to be sent to MLflow: %s", len(waiting), hint)
        group = new_group()
        self._journal = Journal(Sender(store), Unsent(folder / f"unsent-{group}.jsonl", store))
        tags = {
            "kd.pipeline": pipeline_name,
            "kd.env": self._env,
            **describe_process(self._project),
        }
        self._book = RunBook(self._journal, group=group, tags=tags)
        events.subscribe(self._hear)
        # Ctrl-C and sys.exit reach no hook of Kedro's.
        atexit.register(self._abandon)

    @hook_impl
    def before_dataset_loaded(self, node: Node) -> None:
        """Remember whose inputs are read: that may fail too."""
        self._node_name = node.name

    @hook_impl
    def before_node_run(self, node: Node, inputs: dict[str, Any]) -> None:
        """Remember who works on what: events do not say."""
        self._role, self._node_name = node.namespace or node.name, node.name
        self._inputs, self._datasets = inputs, None
        self._facts.look_at(inputs)
        if self._journal is not None:
            # Not earlier: mlflow's import would slow down the way to the first node.
            self._journal.start()

    @hook_impl
    def after_node_run(self, outputs: dict[str, Any]) -> None:
        """Log what the node made. Kedro saves the outputs after this."""
        self._facts.look_at(outputs)
        if self._book is None:
            for name in outputs.keys() & COMPARISONS:
                # Without MLflow too, the file says where it comes from.
                outputs[name].update(group=new_group(), env=self._env)
            return
        for name, value in outputs.items():
            if name.endswith(CHECKPOINTS):
                self._book.log_models(name.removesuffix(CHECKPOINTS), value)
        for name in outputs.keys() & METRICS:
            rows = outputs[name].to_dict("records")
            self._book.log_test_metrics(rows, self._describe_inputs("evaluation"))
        for name in outputs.keys() & COMPARISONS:
            self._log_comparison(self._book, name, outputs[name])
        self._log_files(self._book, outputs)

    @hook_impl
    def after_pipeline_run(self) -> None:
        """Close the runs, send what is left, and say where they can be compared."""
        if self._book is None:
            return
        book = self._book
        self._end("FINISHED")
        if link := book.link():
            how = " (`make ui` serves it)" if "127.0.0.1" in link else ""
            logger.info("Compare the runs in MLflow%s: %s", how, link)

    @hook_impl
    def on_pipeline_error(self, error: BaseException) -> None:
        """Mark what is still open as failed."""
        error = our_cause(error) or error
        reason = next(iter(str(error).splitlines()), "")
        self._end("FAILED", error=f"{self._node_name}: {type(error).__name__}: {reason}")

    def _hear(self, event: events.Event) -> None:
        if self._book is None:
            return
        match event:
            case events.TrainingStarted():
                self._book.training_started(self._role, event, self._describe_inputs("training"))
            case events.EpochEnded():
                self._book.epoch_ended(self._role, event)
            case events.TrainingEnded():
                self._book.training_ended(self._role, event)

    def _describe_inputs(self, context: str) -> list[DatasetFacts]:
        if self._datasets is None:
            self._datasets = self._facts.describe(self._inputs, context=context)
        return self._datasets

    def _log_comparison(self, book: RunBook, name: str, comparison: dict[str, Any]) -> None:
        if EVALUATION in self._inputs:
            book.log_settings(self._inputs[EVALUATION].model_dump())
        for metrics in self._inputs.keys() & METRICS:
            book.find_models(self._inputs[metrics].to_dict("records"))
        # The node knows neither; in place, because Kedro saves this very object next.
        comparison["group"], comparison["env"] = book.join_group(), self._env
        book.log_gains(comparison["gains"])
        book.log_file(f"{name}.json", json.dumps(comparison, indent=2).encode())

    def _log_files(self, book: RunBook, outputs: Mapping[str, Any]) -> None:
        for name, value in outputs.items():
            if _last(name) == SOFT_TARGET_SUMMARY:
                # The last row is what the students hear: the ensemble mixed, or its one member.
                row = value.to_dict("records")[-1]
                book.log_soft_targets(row, namespace=name.rpartition(".")[0])
            if _last(name) in SOFT_TARGET_TABLES:
                book.log_file(f"{name}.csv", value.to_csv(index=False).encode())
            if type(value).__module__.startswith("matplotlib.") and hasattr(value, "savefig"):
                book.log_file(f"figures/{name}.png", _png(value.savefig))
        if HOP_TABLE in outputs:
            book.log_file(f"{HOP_TABLE}.csv", outputs[HOP_TABLE].to_csv(index=False).encode())
        for name in outputs.keys() & REPORTS:
            book.log_file(f"{name}.md", outputs[name].encode())
            book.describe(outputs[name])

    def _abandon(self) -> None:
        """Close what an interrupted run has left open in this process."""
        self._end("KILLED", error=f"{self._node_name}: interrupted")

    def _end(self, status: str, *, error: str = "") -> None:
        if self._book is None:
            return
        book, self._book, self._journal = self._book, None, None
        events.unsubscribe(self._hear)
        atexit.unregister(self._abandon)
        self._forget()
        book.end(status, error=error)


def _last(name: str) -> str:
    """A data set's name without its namespace."""
    return name.rpartition(".")[2]


def describe_process(project: Path) -> dict[str, str]:
    """Tags that say which code ran where, and who ran it."""
    tags = {
        "kd.host": socket.gethostname(),
        "kd.pid": str(os.getpid()),
        "mlflow.source.name": "kd_pipeline",
        "mlflow.source.type": "LOCAL",
    }
    with suppress(OSError, KeyError):  # A container may run under a user id without a name.
        tags["mlflow.user"] = getpass.getuser()
    commit = _git(project, "rev-parse", "HEAD")
    if commit is not None:
        tags["mlflow.source.git.commit"] = commit
        tags["kd.git_dirty"] = json.dumps(bool(_git(project, "status", "--porcelain")))
    return tags


def _git(project: Path, *arguments: str) -> str | None:
    """What git says; None without git, repository or commit."""
    git = shutil.which("git")
    if git is None:
        return None
    try:
        done = subprocess.run(  # noqa: S603 - only the commands below, as lists
            [git, *arguments], cwd=project, capture_output=True, text=True, timeout=5, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _png(savefig: Callable[..., None]) -> bytes:
    buffer = io.BytesIO()
    savefig(buffer, format="png", dpi=100)
    return buffer.getvalue()
