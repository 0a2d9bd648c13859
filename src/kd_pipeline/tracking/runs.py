"""The MLflow runs of one Kedro run."""

import json
import os
import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kd_pipeline.events import EpochEnded, TrainingEnded, TrainingStarted, TrialEnded
from kd_pipeline.tracking.flatten import (
    cost_metrics,
    export_comparison_metrics,
    export_metrics,
    finite_numbers,
    flat_params,
    gain_metrics,
    soft_target_metrics,
)
from kd_pipeline.tracking.groups import PREDICTIONS, TEST_FINGERPRINT, pack_predictions
from kd_pipeline.tracking.journal import Journal
from kd_pipeline.tracking.operations import DatasetFacts, Point, now_ms
from kd_pipeline.tracking.sender import Sender
from kd_pipeline.tracking.settings import Models
from kd_pipeline.tracking.store import chart_link, compare_link, redact

if TYPE_CHECKING:
    import pandas as pd

    from kd_pipeline.models.checkpoint import ModelCheckpoint

COMPARISON = "comparison"
"""Role and key of the run that holds the comparison of all others."""
SOFT_TARGETS = "soft_targets"
"""Role and key of the run that describes a cache made without a comparison."""
MODEL_EXPORT = "model_export"
"""Role and key of the run that compares exported files made without a comparison of students."""
SWEEP = "sweep"
"""Role and key of the run that holds the tables and figures of a sweep."""
RESPLITS = "resplits"
"""Role and key of the run that combines the comparisons of several splits."""
_MAX_COMPARED = 50
"""Runs in a link: more make it too long for a line."""
LATEST_VIEW = "latest"
"""Key of the saved view of the newest comparison, whose address `make ui` prints."""


def new_group() -> str:
    """An id for one Kedro run, as `20261120-204533-1a2b`: sorts by time, and is unique."""
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"


class RunBook:
    """Turns the events and results of a Kedro run into operations on flat MLflow runs.

    There is one run per (role, replicate), with the key and name `<role>-<replicate>`, and one
    named `comparison`; where nothing is compared, `soft_targets`, `model_export`, `sweep` or
    `resplits`. The key and name of a sweep's trial are `<role>-trial-<number>`.
    Runs of models trained earlier are found by `kd.role`, `kd.replicate` and `kd.checkpoint`.
    """

    def __init__(
        self,
        journal: Journal,
        tags: Mapping[str, str],
        *,
        models: Models,
        stage: str = SOFT_TARGETS,
        arm_tags: Mapping[str, Mapping[str, str]] | None = None,
    ) -> None:
        """Begin a group of runs.

        Args:
            journal: Takes the operations.
            tags: Tags that all runs have, `kd.group` among them.
            models: Whose models are uploaded.
            stage: Key of the run for figures and summaries where there is no comparison.
            arm_tags: More tags of a role's runs, by role: see `chart_colours.arm_tags`.
        """
        self._journal, self._stage = journal, stage
        self._tags, self._arm_tags, self._models = tags, arm_tags or {}, models
        self._checkpoints: dict[str, str] = {}
        """Fingerprint of each known run's model, by key."""
        self._accuracies: dict[str, float] = {}
        """Each model's last accuracy on validation, by key."""
        self._trials: list[str] = []
        """Keys of the runs of trials."""
        self._open: list[str] = []
        self._compared = False
        journal.put(Sender.close_dead_runs, "", own_pid=os.getpid())

    def open_comparison(self) -> None:
        """Open the run of the comparison at the start, so that it shows an earlier failure."""
        self._open_run(COMPARISON, {"kd.role": COMPARISON})

    def training_started(
        self, role: str, event: TrainingStarted, datasets: Sequence[DatasetFacts]
    ) -> None:
        """Open a run and log the model's settings and data."""
        key = _key(role, event.replicate)
        tags = {"kd.role": role, "kd.replicate": str(event.replicate)}
        self._open_run(key, {**tags, **self._arm_tags.get(role, {})})
        self._journal.put(Sender.log_params, key, params=flat_params(event.parameters))
        self._journal.put(Sender.log_inputs, key, datasets=datasets)

    def epoch_ended(self, role: str, event: EpochEnded) -> None:
        """Log an epoch's metrics."""
        if (accuracy := event.metrics.get("validation/accuracy")) is not None:
            self._accuracies[_key(role, event.replicate)] = accuracy
        self._log(_key(role, event.replicate), event.metrics, step=event.epoch)

    def training_ended(self, role: str, event: TrainingEnded) -> None:
        """Log what was measured once and close the run."""
        key = _key(role, event.replicate)
        self._checkpoints[key] = event.fingerprint
        self._log(key, event.metrics)
        self._journal.put(Sender.set_tags, key, tags={"kd.checkpoint": event.fingerprint})
        self._close(key, "FINISHED")

    def log_trial(self, role: str, event: TrialEnded, datasets: Sequence[DatasetFacts]) -> None:
        """Log a trial of a sweep as a run of its own, which has ended."""
        key, ended = f"{role}-trial-{event.number}", now_ms()
        started = ended - int(1000 * event.metrics["cost/train_seconds"])
        tags = {"kd.role": role, "kd.sweep": event.sweep, "kd.trial": str(event.number)}
        self._open_run(key, {**tags, "kd.trial_state": event.state}, time_ms=started)
        self._trials.append(key)
        self._journal.put(Sender.log_params, key, params=flat_params(event.parameters))
        self._journal.put(Sender.log_inputs, key, datasets=datasets)
        for epoch, metrics in event.curves.items():
            self._log(key, metrics, step=epoch)
        self._log(key, event.metrics)
        self._close(key, "FINISHED")

    def log_models(self, role: str, checkpoints: Sequence["ModelCheckpoint"]) -> None:
        """Log the models of a role, or the best of them.

        The best is the one of the highest accuracy on validation; the first if none was measured.
        """
        found = [self._find(role, n, one.fingerprint) for n, one in enumerate(checkpoints)]
        best = max(found, key=lambda key: self._accuracies.get(key, 0.0), default=None)
        for key, checkpoint in zip(found, checkpoints, strict=True):
            if self._models == "all" or (self._models == "best" and key == best):
                self._journal.put(Sender.log_model, key, content=checkpoint)

    def log_test_metrics(
        self, rows: Iterable[Mapping[str, Any]], datasets: Sequence[DatasetFacts]
    ) -> None:
        """Log each row of the evaluation's `metrics` to the run of its model."""
        for row in rows:
            key = self._find_row(row)
            self._log(key, {name: row[name] for name in row if "/" in name})
            if isinstance(row.get("learnt_from"), str):
                params = {"learnt_from": row["learnt_from"]}
                self._journal.put(Sender.log_params, key, params=params)
            self._journal.put(Sender.log_inputs, key, datasets=datasets)

    def log_comparison(
        self,
        comparison: Mapping[str, Any],
        *,
        rows: Iterable[Mapping[str, Any]],
        settings: Mapping[str, Any],
    ) -> None:
        """Log gains over the baseline and costs, with the settings that they were measured under.

        Args:
            comparison: As in comparison.json, which is logged too.
            rows: Of `metrics`, whose runs are those that were compared.
            settings: `evaluation` in YAML.
        """
        for row in rows:
            self._find_row(row)
        self._journal.put(Sender.log_params, COMPARISON, params=flat_params(settings))
        self._log(COMPARISON, gain_metrics(comparison) | cost_metrics(comparison))
        self.log_file(f"{COMPARISON}.json", json.dumps(comparison, indent=2).encode())

    def log_resplits(self, combined: Mapping[str, Any]) -> None:
        """Log gains that are combined over splits, as in resplits.json, named as a comparison's."""
        tags = {"kd.compared_groups": ",".join(combined["groups"])}
        self._journal.put(Sender.set_tags, self._page(), tags=tags)
        self._log(self._page(), gain_metrics(combined))

    def log_predictions(self, predictions: "pd.DataFrame", test_fingerprint: str) -> None:
        """Log what a comparison with another group needs, where students are compared."""
        if COMPARISON not in self._open:
            return
        self.log_file(PREDICTIONS, pack_predictions(predictions))
        tags = {TEST_FINGERPRINT: test_fingerprint}
        self._journal.put(Sender.set_tags, COMPARISON, tags=tags)

    def log_exports(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Log the metrics of each exported file to the run of its model."""
        for row in rows:
            if row["target"] != "checkpoint":  # Its numbers are there as `test/...`.
                self._log(self._find_row(row), export_metrics(row))

    def log_export_comparison(self, comparison: Mapping[str, Any]) -> None:
        """Log what int8 costs each model."""
        self._log(self._page(), export_comparison_metrics(comparison))
        content = json.dumps(comparison, indent=2).encode()
        self.log_file("export_comparison.json", content)

    def log_exported_files(
        self, role: str, replicate: int, checkpoint: str, files: Mapping[str, bytes]
    ) -> None:
        """Log the files that ship to the run of their model, in `export`."""
        key = self._find(role, replicate, checkpoint)
        for name, content in files.items():
            # By group: those of an earlier export of the same model stay what they were.
            path = f"export/{self._tags['kd.group']}/{name}"
            self._journal.put(Sender.log_artifact, key, path=path, content=content)

    def log_soft_targets(self, summary: Mapping[str, Any], *, namespace: str = "") -> None:
        """Log the summary of a cache; see `soft_target_metrics`."""
        self._log(self._page(), soft_target_metrics(summary, namespace=namespace))

    def log_file(self, path: str, content: bytes) -> None:
        """Log a small file to the comparison's run, or without one to the stage's own."""
        self._journal.put(Sender.log_artifact, self._page(), path=path, content=content)

    def log_report(self, markdown: str) -> None:
        """Log the report, and show it on the comparison's page."""
        self.log_file("report.md", markdown.encode())
        note = {"mlflow.note.content": markdown[:7500]}
        self._journal.put(Sender.set_tags, COMPARISON, tags=note)

    def end(self, status: str, *, error: str = "") -> None:
        """Close the open runs as FINISHED, FAILED or KILLED, and send all that is left."""
        if COMPARISON in self._open and status == "FINISHED":
            self._save_views()
        for key in self._open.copy():
            if error:
                self._journal.put(Sender.set_tags, key, tags={"kd.error": redact(error)[:500]})
            self._close(key, status)
        self._journal.close()

    def _save_views(self) -> None:
        models, group = tuple(self._checkpoints), self._tags["kd.group"]
        self._journal.wait()
        compared = {"kd.compared_runs": ",".join(self._run_ids())}
        self._journal.put(Sender.set_tags, COMPARISON, tags=compared)
        for view in (group, LATEST_VIEW):
            self._journal.put(Sender.save_view, COMPARISON, key=view, models=models, group=group)
        self._compared = True

    def link(self) -> str | None:
        """Where the models' runs can be compared, after `end`; None if the store has none of them.

        After a comparison this is its saved view of the charts, else MLflow's plain comparison.
        """
        sender, run_ids = self._journal.sender, self._run_ids()[:_MAX_COMPARED]
        if not run_ids:
            return None
        if self._compared:
            return chart_link(sender.store, sender.experiment_id, self._tags["kd.group"])
        return compare_link(sender.store, sender.experiment_id, run_ids)

    def _run_ids(self) -> list[str]:
        ids = self._journal.sender.run_ids
        return [ids[key] for key in (*self._checkpoints, *self._trials) if key in ids]

    def _page(self) -> str:
        """The run for figures and summaries."""
        if COMPARISON in self._open:
            return COMPARISON
        if self._stage not in self._open:
            self._open_run(self._stage, {"kd.role": self._stage})
        return self._stage

    def _find_row(self, row: Mapping[str, Any]) -> str:
        return self._find(str(row["role"]), int(row["replicate"]), str(row["checkpoint"]))

    def _find(self, role: str, replicate: int, checkpoint: str) -> str:
        key = _key(role, replicate)
        if self._checkpoints.get(key) != checkpoint:
            self._checkpoints[key] = checkpoint
            tags = {"kd.role": role, "kd.replicate": str(replicate), "kd.checkpoint": checkpoint}
            self._put_open(key, {**tags, **self._arm_tags.get(role, {})}, find=True)
        return key

    def _open_run(self, key: str, tags: Mapping[str, str], *, time_ms: int | None = None) -> None:
        self._open.append(key)
        self._put_open(key, tags, find=False, time_ms=time_ms)

    def _put_open(
        self, key: str, tags: Mapping[str, str], *, find: bool, time_ms: int | None = None
    ) -> None:
        tags, time_ms = {**self._tags, **tags}, time_ms or now_ms()
        self._journal.put(Sender.open_run, key, tags=tags, time_ms=time_ms, find=find)

    def _close(self, key: str, status: str) -> None:
        self._open.remove(key)
        self._journal.put(Sender.close_run, key, status=status, time_ms=now_ms())

    def _log(self, key: str, metrics: Mapping[str, Any], *, step: int = 0) -> None:
        numbers, time_ms = finite_numbers(metrics), now_ms()
        if points := [Point(name, value, step, time_ms) for name, value in numbers.items()]:
            self._journal.put(Sender.log_metrics, key, points=points)


def _key(role: str, replicate: int) -> str:
    return f"{role}-{replicate}"
