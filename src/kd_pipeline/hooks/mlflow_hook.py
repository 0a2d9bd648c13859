"""Logs a Kedro run to MLflow: the events of training, and the outputs of its nodes."""

import atexit
import getpass
import io
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from kedro.framework.context import KedroContext
from kedro.framework.hooks import hook_impl
from kedro.io import CatalogProtocol
from kedro.pipeline import Pipeline
from kedro.pipeline.node import Node

from kd_pipeline import events
from kd_pipeline.errors import our_cause
from kd_pipeline.evaluation.roles import colours, label
from kd_pipeline.hooks.inputs import describe_inputs, fingerprint_of_test_set
from kd_pipeline.hooks.parameters import check_parameters
from kd_pipeline.hooks.shards import is_follower, labelling_shard
from kd_pipeline.tracking.chart_colours import arm_tags
from kd_pipeline.tracking.journal import Journal
from kd_pipeline.tracking.operations import DatasetFacts
from kd_pipeline.tracking.runs import MODEL_EXPORT, SOFT_TARGETS, SWEEP, RunBook, new_group
from kd_pipeline.tracking.sending_process import SendingProcess
from kd_pipeline.tracking.settings import MLflowParams
from kd_pipeline.tracking.store import Store, locate_store
from kd_pipeline.tracking.unsent import Unsent, find_unsent

logger = logging.getLogger(__name__)

# Entries of the catalog in memory, which the hook fills for nodes to take as inputs.
TRACKING_STORE = "tracking_store"
RUN_IDENTITY = "run_identity"

CHECKPOINTS = ".checkpoints"
PREDICTIONS = "predictions"
METRICS = "metrics"
COMPARISON = "comparison"
REPORT = "report"
REPORT_PAGE = "report_page"
EXPORT_METRICS = "export_metrics"
EXPORT_COMPARISON = "export_comparison"
EXPORT_REPORT = "export_report"
EXPORT_REPORT_PAGE = "export_report_page"
SOFT_TARGET_SUMMARY = "soft_target_summary"
SWEEP_TRIALS = "sweep_trials"
SWEEP_PRESET = "sweep_preset"
TABLES = (SOFT_TARGET_SUMMARY, "soft_target_confusions", SWEEP_TRIALS, "sweep_best_values")
EVALUATION = "params:evaluation"
UNSENT_FOLDER = Path("data", "09_tracking")


class MLflowHook:
    """Keeps MLflow up to date; see `RunBook` for what is logged where."""

    def __init__(self) -> None:
        """Nothing is opened, and mlflow not imported, before a pipeline runs."""
        self._params = MLflowParams(enabled=False)
        self._project = Path.cwd()
        self._env = "base"
        self._catalog: CatalogProtocol[Any, Any] | None = None
        self._book: RunBook | None = None
        self._journal: Journal | None = None
        self._clear_node()

    def _clear_node(self) -> None:
        self._role = ""
        self._node_name = ""
        self._inputs: Mapping[str, Any] = {}
        self._datasets: list[DatasetFacts] | None = None

    @hook_impl
    def after_context_created(self, context: KedroContext) -> None:
        """Read `mlflow.yml`."""
        self._project = Path(context.project_path)
        self._env = context.env or "base"
        given = context.config_loader["mlflow"]
        check_parameters({"mlflow": given}, {"mlflow": MLflowParams})
        self._params = MLflowParams.model_validate(given)

    @hook_impl
    def after_catalog_created(self, catalog: CatalogProtocol[Any, Any]) -> None:
        """Fill the entries of the store and the run's identity; each run has a catalog of its own.

        Both are there whether or not this run is logged: teachers are fetched from the store,
        and comparison.json names the run.
        """
        store = locate_store(self._project, self._params)
        catalog.save(TRACKING_STORE, store)
        catalog.save(RUN_IDENTITY, {"group": new_group(), "env": self._env})

    @hook_impl
    def before_pipeline_run(
        self, run_params: dict[str, Any], pipeline: Pipeline, catalog: CatalogProtocol[Any, Any]
    ) -> None:
        """Begin a group of runs, if this pipeline makes anything that belongs into MLflow."""
        self._abandon()
        self._catalog = catalog
        outputs = pipeline.all_outputs()
        logged = (METRICS, COMPARISON, EXPORT_METRICS, SWEEP_TRIALS)
        tracked = not outputs.isdisjoint(logged) or any(
            name.endswith(CHECKPOINTS) or _last(name) == SOFT_TARGET_SUMMARY for name in outputs
        )
        # Of a store that is labelled in shards, the one run that summarises it is logged.
        is_silent = labelling_shard(pipeline, catalog) or is_follower(pipeline)
        if not self._params.enabled or not tracked or is_silent:
            return
        pipeline_name = ",".join(run_params.get("pipeline_names") or ["__default__"])
        identity = catalog.load(RUN_IDENTITY)
        pages = {EXPORT_METRICS: MODEL_EXPORT, SWEEP_TRIALS: SWEEP}
        stage = next((pages[name] for name in pages if name in outputs), SOFT_TARGETS)
        store, arms = catalog.load(TRACKING_STORE), tags_of_arms(pipeline)
        self._book = self._begin(pipeline_name, identity, store, stage, arms)
        if COMPARISON in outputs:
            self._book.open_comparison()

    def _begin(
        self,
        pipeline_name: str,
        identity: Mapping[str, str],
        store: Store,
        stage: str,
        arms: Mapping[str, Mapping[str, str]],
    ) -> RunBook:
        import torch

        folder = self._project / UNSENT_FOLDER
        if waiting := find_unsent(folder):
            hint = "`python -m kd_pipeline.tracking` sends them"
            logger.info("%d earlier runs wait to be sent to MLflow: %s", len(waiting), hint)
        unsent = Unsent(folder / f"unsent-{identity['group']}.jsonl", store)
        max_wait = self._params.max_wait_seconds
        self._journal = Journal(SendingProcess(store), unsent, max_wait_seconds=max_wait)
        events.subscribe(self._log_event)
        # Ctrl-C and sys.exit reach no hook of Kedro's.
        atexit.register(self._abandon)
        exit_on_sigterm()
        tags = {
            "kd.pipeline": pipeline_name,
            "kd.env": identity["env"],
            "kd.group": identity["group"],
            "kd.num_threads": str(torch.get_num_threads()),
            **describe_process(self._project),
        }
        models = self._params.models
        return RunBook(self._journal, tags, models=models, stage=stage, arm_tags=arms)

    @hook_impl
    def before_dataset_loaded(self, node: Node) -> None:
        """Note whose inputs are read: that may fail too."""
        self._node_name = node.name

    @hook_impl
    def before_node_run(self, node: Node, inputs: dict[str, Any]) -> None:
        """Note the node and its inputs, which events do not name."""
        self._role, self._node_name = node.namespace or node.name, node.name
        self._inputs, self._datasets = inputs, None
        if self._journal is not None:
            self._journal.start()

    @hook_impl
    def after_node_run(self, outputs: dict[str, Any]) -> None:
        """Log what the node made."""
        if self._book is None:
            return
        for name, value in outputs.items():
            if name.endswith(CHECKPOINTS):
                self._book.log_models(name.removesuffix(CHECKPOINTS), value)
        if METRICS in outputs:
            self._log_measured(self._book, outputs)
        if COMPARISON in outputs:
            self._log_comparison(self._book, outputs[COMPARISON])
        _log_report(self._book, outputs)
        self._log_exports(self._book, outputs)
        for name, value in outputs.items():
            _log_tables(self._book, name, value)

    @hook_impl
    def after_dataset_saved(self, dataset_name: str, data: Any) -> None:
        """Log a figure."""
        if self._book is not None and _is_figure(data):
            content = self._saved_png(dataset_name) or _png(data.savefig)
            self._book.log_file(f"figures/{dataset_name}.png", content)

    def _saved_png(self, name: str) -> bytes | None:
        """The file that the catalog has just made of a figure: to draw it again takes as long."""
        entry = None if self._catalog is None else self._catalog.get(name)
        # Kedro's data sets have no public name for their path.
        path = Path(getattr(entry, "_filepath", ""))
        return path.read_bytes() if path.suffix == ".png" and path.is_file() else None

    @hook_impl
    def after_pipeline_run(self) -> None:
        """Close the runs, send what is left, and log where they can be compared."""
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

    def _log_event(self, event: events.Event) -> None:
        if self._book is None:
            return
        match event:
            case events.TrainingStarted():
                self._book.training_started(self._role, event, self._describe_inputs("training"))
            case events.EpochEnded():
                self._book.epoch_ended(self._role, event)
            case events.TrainingEnded():
                self._book.training_ended(self._role, event)
            case events.TrialEnded():
                self._book.log_trial(self._role, event, self._describe_inputs("training"))

    def _describe_inputs(self, context: str) -> list[DatasetFacts]:
        if self._datasets is None:
            self._datasets = describe_inputs(self._inputs, context=context)
        return self._datasets

    def _log_measured(self, book: RunBook, outputs: Mapping[str, Any]) -> None:
        rows = outputs[METRICS].to_dict("records")
        book.log_test_metrics(rows, self._describe_inputs("evaluation"))
        if PREDICTIONS in outputs:
            fingerprint = fingerprint_of_test_set(self._inputs)
            book.log_predictions(outputs[PREDICTIONS], fingerprint)

    def _log_comparison(self, book: RunBook, comparison: Mapping[str, Any]) -> None:
        rows = self._inputs[METRICS].to_dict("records")
        book.log_comparison(comparison, rows=rows, settings=self._inputs[EVALUATION].model_dump())

    def _log_exports(self, book: RunBook, outputs: Mapping[str, Any]) -> None:
        """Log files on the test set, and those that were published; nothing where none was made."""
        if EXPORT_METRICS in outputs:
            book.log_exports(outputs[EXPORT_METRICS].to_dict("records"))
        if EXPORT_COMPARISON in outputs and outputs[EXPORT_COMPARISON]["files"]:
            book.log_export_comparison(outputs[EXPORT_COMPARISON])
        if EXPORT_REPORT in outputs and self._inputs["exported_models"]:
            book.log_file("export_report.md", outputs[EXPORT_REPORT].encode())
            book.log_file("export_report.html", outputs[EXPORT_REPORT_PAGE].encode())
            for model in self._inputs["exported_models"]:
                folder = self._inputs["export_folder"] / model.role
                if model.is_best and model.role != "teacher":  # Whose files do not ship.
                    files = read_files(folder)
                    checkpoint = model.checkpoint.fingerprint
                    book.log_exported_files(model.role, model.replicate, checkpoint, files)

    def _abandon(self) -> None:
        """Close what an interrupted run has left open in this process."""
        self._end("KILLED", error=f"{self._node_name}: interrupted")

    def _end(self, status: str, *, error: str = "") -> None:
        if self._book is None:
            return
        book, self._book, self._journal = self._book, None, None
        events.unsubscribe(self._log_event)
        atexit.unregister(self._abandon)
        if signal.getsignal(signal.SIGTERM) is _exit:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self._clear_node()
        book.end(status, error=error)


def _log_report(book: RunBook, outputs: Mapping[str, Any]) -> None:
    if REPORT in outputs:
        book.log_report(outputs[REPORT])
    if REPORT_PAGE in outputs:
        book.log_file("report.html", outputs[REPORT_PAGE].encode())


def _log_tables(book: RunBook, name: str, value: Any) -> None:
    """Log the tables of soft targets and of sweeps, and the preset of a sweep."""
    if _last(name) == SOFT_TARGET_SUMMARY:
        # The last row is what the students learn from: the ensemble, or its one member.
        row = value.to_dict("records")[-1]
        book.log_soft_targets(row, namespace=name.rpartition(".")[0])
    if _last(name) in TABLES:
        from kd_pipeline.data.spreadsheets import escape_formulas

        book.log_file(f"{name}.csv", escape_formulas(value).to_csv(index=False).encode())
    if name == SWEEP_PRESET:
        book.log_file("sweep_preset.yml", value.encode())


def _is_figure(value: object) -> bool:
    return type(value).__module__.startswith("matplotlib.") and bool(getattr(value, "axes", None))


def read_files(folder: Path) -> dict[str, bytes]:
    """The content of all files of a folder, by path within it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def _last(name: str) -> str:
    """A data set's name without its namespace."""
    return name.rpartition(".")[2]


def tags_of_arms(pipeline: Pipeline) -> dict[str, Mapping[str, str]]:
    """Tags of each role's runs: its name in charts, and its colour in all figures."""
    names = pipeline.inputs() | pipeline.all_outputs()
    roles = sorted(name.removesuffix(CHECKPOINTS) for name in names if name.endswith(CHECKPOINTS))
    return {role: arm_tags(label(role), colour) for role, colour in colours(roles).items()}


def exit_on_sigterm() -> None:
    """Let SIGTERM end the process as sys.exit does, unless it is handled already.

    Without a handler it ends at once and its MLflow runs stay RUNNING until the next run.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    if in_main_thread and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _exit)


def _exit(number: int, _frame: object) -> None:
    sys.exit(128 + number)


def describe_process(project: Path) -> dict[str, str]:
    """Tags that name the machine, the process, the user and the commit."""
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
    """What git prints; None without git, repository or commit."""
    try:
        done = subprocess.run(  # noqa: S603 - only the commands above, as lists
            ["git", *arguments],  # noqa: S607
            cwd=project,
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _png(savefig: Callable[..., None]) -> bytes:
    buffer = io.BytesIO()
    savefig(buffer, format="png", dpi=100)
    return buffer.getvalue()
