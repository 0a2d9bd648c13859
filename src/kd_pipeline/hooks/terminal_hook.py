"""The run on the terminal: its stages, how far each is, and the table at the end."""

import logging
import os
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from statistics import harmonic_mean
from typing import Any

from kedro.framework.hooks import hook_impl
from kedro.io import CatalogProtocol
from kedro.pipeline import Pipeline
from kedro.pipeline.node import Node

from kd_pipeline import events
from kd_pipeline.hooks.error_display import show_errors_concisely
from kd_pipeline.hooks.progress import Progress
from kd_pipeline.hooks.shards import is_follower

logger = logging.getLogger(__name__)

_RATE = "train/examples_per_second"
_SHOWN = {
    "train/loss": "train loss {:.4g}",
    "validation/accuracy": "validation accuracy {:.4g}",
    _RATE: "{:,.0f} examples/s",
    "quantisation/train_loss": "int8 train loss {:.4g}",
    "quantisation/validation_accuracy": "int8 validation accuracy {:.4g}",
}


class TerminalHook:
    """Logs each stage, shows progress from the events, prints the table of arms at the end."""

    def __init__(self) -> None:
        """Nothing is shown before a pipeline runs."""
        self._open = ExitStack()
        self._reset()

    def _reset(self) -> None:
        self._numbers: dict[str, int] = {}
        self._stage = ""
        self._progress: Progress | None = None
        self._comparison: dict[str, Any] | None = None
        self._report: str | None = None
        self._groups: dict[str, Any] | None = None
        self._exports: dict[str, Any] = {"files": []}
        self._started_at = time.monotonic()
        # Of the trainings that have begun and not ended, by replicate.
        self._metrics: dict[int, dict[str, float]] = {}
        self._rates: dict[int, list[float]] = {}
        self._epochs: dict[int, int] = {}

    # First, so that what other hooks refuse about settings is shown in short as well.
    @hook_impl(tryfirst=True)
    def after_context_created(self) -> None:
        """From here on, our own errors end in their message."""
        show_errors_concisely()

    @hook_impl
    def before_pipeline_run(self, pipeline: Pipeline) -> None:
        """Number the stages and subscribe to the events; of several processes, in the first."""
        self._close()
        self._reset()
        self._numbers = {node.name: at for at, node in enumerate(pipeline.nodes, start=1)}
        if is_follower(pipeline):
            return
        self._open.enter_context(events.listening(self._show))
        if sys.stderr.isatty():
            from tqdm.contrib.logging import logging_redirect_tqdm

            # Else a line that is logged while a bar stands runs into it.
            self._open.enter_context(logging_redirect_tqdm())

    @hook_impl
    def before_node_run(self, node: Node) -> None:
        """Log a stage."""
        name = node.name.removeprefix(f"{node.namespace}.")
        owner = f"{node.namespace}: " if node.namespace else ""
        number = f"[{self._numbers.get(node.name, 0)}/{len(self._numbers)}]"
        self._stage = f"{number} {owner}{name}"
        logger.info("%s", self._stage)

    @hook_impl
    def after_node_run(self, outputs: dict[str, Any]) -> None:
        """Keep what is to be shown at the end."""
        self._end_progress()
        self._comparison = outputs.get("comparison", self._comparison)
        made = (name for name in ("report_page", "report") if name in outputs)
        self._report = next(made, self._report)
        self._groups = outputs.get("group_comparison", self._groups)
        self._exports = outputs.get("export_comparison", self._exports)

    # Last, so that the table is what stays on the screen.
    @hook_impl(trylast=True)
    def after_pipeline_run(self, catalog: CatalogProtocol[Any, Any]) -> None:
        """Print the table of arms, and how long it all took."""
        self._close()
        if self._comparison is not None:
            from kd_pipeline.evaluation.terminal import arms_table

            _print(arms_table(self._comparison, _path(catalog, self._report)))
        if self._groups is not None:
            from kd_pipeline.evaluation.terminal import groups_summary

            _print(groups_summary(self._groups, _path(catalog, "group_comparison_page")))
        if self._exports["files"]:
            from kd_pipeline.evaluation.terminal import exports_table

            folder, page = _path(catalog, "export_folder"), _path(catalog, "export_report_page")
            _print(exports_table(self._exports, folder or "", page))
        logger.info("Done in %.1f s", time.monotonic() - self._started_at)

    @hook_impl
    def on_node_error(self) -> None:
        """Name the stage that failed; the message itself comes last, from Python."""
        self._end_progress()
        logger.error("%s failed", self._stage)

    @hook_impl
    def on_pipeline_error(self) -> None:
        """Leave the terminal as it was."""
        self._close()

    def _show(self, event: events.Event) -> None:
        match event:
            case events.TrainingStarted(replicate=replicate, num_epochs=num_epochs):
                self._metrics[replicate], self._rates[replicate] = {}, []
                self._epochs[replicate] = 0
                first = min(self._metrics)
                numbers = f"s {first} to {replicate}" if first < replicate else f" {replicate}"
                self._begin_progress(f"replicate{numbers}", num_epochs, "epochs")
            case events.EpochEnded(replicate=replicate, epoch=epoch, metrics=metrics):
                self._metrics[replicate] |= metrics
                if _RATE in metrics:
                    self._rates[replicate].append(metrics[_RATE])
                self._epochs[replicate] = epoch
                if self._progress is not None:
                    # Of the one that is least far, where several train at once.
                    self._progress.advance(min(self._epochs.values()), _in_short(metrics))
            case events.TrainingEnded(replicate=replicate):
                result = self._result(event)
                if not self._metrics:
                    self._end_progress()
                logger.info("  replicate %d: %s", replicate, result)
            case events.Progress():
                self._show_progress(event)

    def _show_progress(self, event: events.Progress) -> None:
        if self._progress is None or self._progress.description != event.description:
            self._begin_progress(event.description, event.total, event.unit)
        if self._progress is not None:
            self._progress.advance(event.done, event.detail)
        if event.done >= event.total:
            self._end_progress()

    def _begin_progress(self, description: str, total: int, unit: str) -> None:
        self._end_progress()
        self._progress = Progress(description, total=total, unit=unit)

    def _end_progress(self) -> None:
        if self._progress is not None:
            self._progress.close()
            self._progress = None

    def _close(self) -> None:
        self._end_progress()
        self._open.close()

    def _result(self, event: events.TrainingEnded) -> str:
        seconds = event.metrics.get("cost/train_seconds")
        # Of the whole training, as the seconds beside: epochs are of equal size.
        metrics, rates = self._metrics.pop(event.replicate), self._rates.pop(event.replicate)
        del self._epochs[event.replicate]
        rate = {_RATE: harmonic_mean(rates)} if rates else {}
        parts = [_in_short(metrics | rate), "" if seconds is None else f"{seconds:.1f} s"]
        return ", ".join(part for part in parts if part) or "trained"


def _print(table: str) -> None:
    sys.stderr.flush()
    sys.stdout.write(f"\n{table}\n\n")
    sys.stdout.flush()


def _path(catalog: CatalogProtocol[Any, Any], name: str | None) -> str | None:
    """Path of a data set from the working directory; None where there is none, or no file."""
    # Kedro's data sets have no public name for their path.
    path = getattr(catalog[name], "_filepath", None) if name and name in catalog else None
    return None if path is None else os.path.relpath(path)


def _in_short(metrics: Mapping[str, float]) -> str:
    return ", ".join(text.format(metrics[name]) for name, text in _SHOWN.items() if name in metrics)
