"""The runs of one Kedro run: which are open, which are found again, which are compared."""

import logging
import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kd_pipeline.events import EpochEnded, TrainingEnded, TrainingStarted
from kd_pipeline.tracking.flatten import (
    finite_numbers,
    flat_params,
    gain_metrics,
    soft_target_metrics,
)
from kd_pipeline.tracking.journal import Journal, run_ids_of
from kd_pipeline.tracking.operations import (
    COMPARISON,
    SOFT_TARGETS,
    CloseDeadRuns,
    CloseRun,
    DatasetFacts,
    LogArtifact,
    LogInputs,
    LogMetrics,
    LogModel,
    LogParams,
    OpenRun,
    Point,
    SaveView,
    SetTags,
    now_ms,
)
from kd_pipeline.tracking.store import chart_link, compare_link

if TYPE_CHECKING:
    from kd_pipeline.models.checkpoint import ModelCheckpoint

logger = logging.getLogger(__name__)

LATEST_VIEW = "latest"
"""The saved view that always shows the newest comparison: `make ui` names its address."""


def new_group() -> str:
    """An id for one Kedro run, as `20261120-204533-1a2b`: sorts by time, and is unique."""
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"


class RunBook:
    """Turns what happens in a Kedro run into operations on flat MLflow runs.

    There is one run per (role, replicate), with the key and name `<role>-<replicate>`, and one
    named `comparison`; where soft targets are cached and nothing is compared, `soft_targets`.
    Runs of models trained earlier are found by `kd.role`, `kd.replicate` and `kd.checkpoint`.
    """

    def __init__(self, journal: Journal, *, group: str, tags: Mapping[str, str]) -> None:
        """Begin a group of runs.

        Args:
            journal: Takes the operations.
            group: Id of this Kedro run.
            tags: Tags that all its runs have.
        """
        self._journal = journal
        self._tags = {**tags, "kd.group": group}
        self.group = group
        self._checkpoints: dict[str, str] = {}
        """Fingerprint of the model of each run that is known, by key, in order."""
        self._open: dict[str, None] = {}
        self._has_trained = self._compared = False
        journal.put(CloseDeadRuns())

    def open_comparison(self) -> None:
        """Open the run of the comparison, so that a failure before it is seen."""
        self._open_run(COMPARISON, {"kd.role": COMPARISON})

    def training_started(
        self, role: str, event: TrainingStarted, datasets: Sequence[DatasetFacts]
    ) -> None:
        """Open a run and log what the model is trained under and on."""
        key = self._key(role, event.replicate)
        self._has_trained = True
        self._open_run(key, {"kd.role": role, "kd.replicate": str(event.replicate)})
        self._journal.put(LogParams(key, flat_params(event.parameters)))
        self._journal.put(LogInputs(key, tuple(datasets)))

    def epoch_ended(self, role: str, event: EpochEnded) -> None:
        """Log an epoch's metrics at the number of epochs done."""
        self._log(self._key(role, event.replicate), event.metrics, step=event.epoch)

    def training_ended(self, role: str, event: TrainingEnded) -> None:
        """Log what was measured once and close the run."""
        key = self._key(role, event.replicate)
        self._checkpoints[key] = event.fingerprint
        self._log(key, event.metrics)
        self._journal.put(SetTags(key, {"kd.checkpoint": event.fingerprint}))
        self._close(key, "FINISHED")

    def log_models(self, role: str, checkpoints: Iterable["ModelCheckpoint"]) -> None:
        """Log the models of a role, and return when that is done.

        torch.export beside a training thread could disturb global state, so training waits.
        """
        for replicate, checkpoint in enumerate(checkpoints):
            key = self._find(role, replicate, checkpoint.fingerprint)
            self._journal.put(LogModel(key, checkpoint))
        self._journal.wait()

    def log_test_metrics(
        self, rows: Iterable[Mapping[str, Any]], datasets: Sequence[DatasetFacts]
    ) -> None:
        """Log each row of the evaluation's `metrics` to the run of its model."""
        for row in rows:
            key = self._find_row(row)
            self._log(key, {name: row[name] for name in row if "/" in name})
            self._journal.put(LogInputs(key, tuple(datasets)))

    def find_models(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Find the run of each row of the evaluation's `metrics`, unless it is known."""
        for row in rows:
            self._find_row(row)

    def log_settings(self, settings: Mapping[str, Any]) -> None:
        """Log parameters of the comparison."""
        self._journal.put(LogParams(COMPARISON, flat_params(settings)))

    def join_group(self) -> str:
        """Settle the group of the comparison.

        Where nothing was trained and all models come from one group, the comparison joins it,
        so that filtering by `kd.group` shows all that belongs together.
        """
        self._journal.wait()
        found = {self._journal.sender.groups.get(key, "") for key in self._checkpoints}
        if not self._has_trained and len(found) == 1 and (group := found.pop()):
            self.group = group
            self._journal.put(SetTags(COMPARISON, {"kd.group": group}))
        return self.group

    def log_gains(self, gains: Mapping[str, Mapping[str, Any]]) -> None:
        """Log the arms' gains over the baseline to the comparison; see `gain_metrics`."""
        self._log(COMPARISON, gain_metrics(gains))

    def log_soft_targets(self, summary: Mapping[str, Any], *, namespace: str = "") -> None:
        """Log what a cache is like; see `soft_target_metrics`."""
        self._log(self._page(), soft_target_metrics(summary, namespace=namespace))

    def log_file(self, path: str, content: bytes) -> None:
        """Log a small file to the comparison, or to the soft targets' run without one."""
        self._journal.put(LogArtifact(self._page(), path, content))

    def describe(self, markdown: str) -> None:
        """Show a text on the comparison's page."""
        self._journal.put(SetTags(COMPARISON, {"mlflow.note.content": markdown[:7500]}))

    def end(self, status: str, *, error: str = "") -> None:
        """Close what is open as FINISHED, FAILED or KILLED, and send all that is left."""
        if COMPARISON in self._open and status == "FINISHED":
            run_ids = run_ids_of(self._journal, list(self._checkpoints))
            self._journal.put(SetTags(COMPARISON, {"kd.compared_runs": ",".join(run_ids)}))
            for view in (self.group, LATEST_VIEW):
                self._journal.put(SaveView(COMPARISON, view, tuple(self._checkpoints)))
            self._compared = True
        for key in list(self._open):
            if error:
                self._journal.put(SetTags(key, {"kd.error": error[:500]}))
            self._close(key, status)
        self._journal.close()

    def link(self) -> str | None:
        """Where the models' runs can be compared; None where the store knows none of them.

        After a comparison this is its saved view of the charts, else MLflow's plain comparison.
        """
        sender = self._journal.sender
        run_ids = [sender.run_ids[key] for key in self._checkpoints if key in sender.run_ids]
        if self._compared and run_ids:
            return chart_link(sender.store, sender.experiment_id, self.group)
        return compare_link(sender.store, sender.experiment_id, run_ids) if run_ids else None

    def _page(self) -> str:
        """The run that describes the whole: where a person looks for figures."""
        if COMPARISON in self._open:
            return COMPARISON
        if SOFT_TARGETS not in self._open:
            self._open_run(SOFT_TARGETS, {"kd.role": SOFT_TARGETS})
        return SOFT_TARGETS

    def _key(self, role: str, replicate: int) -> str:
        return f"{role}-{replicate}"

    def _find_row(self, row: Mapping[str, Any]) -> str:
        return self._find(str(row["role"]), int(row["replicate"]), str(row["checkpoint"]))

    def _find(self, role: str, replicate: int, checkpoint: str) -> str:
        key = self._key(role, replicate)
        if self._checkpoints.get(key) != checkpoint:
            self._checkpoints[key] = checkpoint
            tags = {
                "kd.role": role,
                "kd.replicate": str(replicate),
                "kd.checkpoint": checkpoint,
            }
            self._journal.put(OpenRun(key, {**self._tags, **tags}, find=True))
        return key

    def _open_run(self, key: str, tags: Mapping[str, str]) -> None:
        self._open[key] = None
        self._journal.put(OpenRun(key, {**self._tags, **tags}))

    def _close(self, key: str, status: str) -> None:
        self._open.pop(key, None)
        self._journal.put(CloseRun(key, status))

    def _log(self, key: str, metrics: Mapping[str, Any], *, step: int = 0) -> None:
        time_ms = now_ms()
        numbers = finite_numbers(metrics).items()
        points = tuple(Point(name, value, step, time_ms) for name, value in numbers)
        if points:
            self._journal.put(LogMetrics(key, points))
