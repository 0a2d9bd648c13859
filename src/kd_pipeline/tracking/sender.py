"""The calls of MLflow that operations stand for."""

import io
import json
import socket
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from kd_pipeline.atomic import is_alive
from kd_pipeline.tracking.chart_view import TAG_PREFIX, group_filter, runs_filter, view_tag
from kd_pipeline.tracking.operations import DatasetFacts, Operation, Point
from kd_pipeline.tracking.store import Store, open_client

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput, Run

    from kd_pipeline.models.checkpoint import ModelCheckpoint

_MAX_DIGEST = 36  # MLflow's limit.


class Sender:
    """Sends operations one at a time; any failure is raised.

    An operation may be sent again, by this process or a later one, whether or not it was carried
    out: the store is then as if it had been sent once.
    """

    def __init__(self, store: Store) -> None:
        """Hold a store, which is opened, and mlflow imported, by the first operation."""
        self.store = store
        self.run_ids: dict[str, str] = {}
        """Ids of the runs, by key."""
        self._groups: dict[str, str | None] = {}
        """`kd.group` of the runs, by key."""
        self._model_ids: dict[str, str | None] = {}
        """Id of the model of each run that this process has opened or looked up, by key."""
        self.exporting = threading.Lock()
        """Held while a model is exported."""
        self.export_seconds = 0.0

    def send(self, operation: Operation) -> None:
        """Send one operation."""
        getattr(self, operation.kind)(operation.run, **operation.values)

    def close(self) -> None:
        """Free what sending needed."""

    def is_reachable(self) -> bool:
        """Whether the store answers at all."""
        try:
            self._client.get_experiment(self.experiment_id)
        except Exception:  # Of mlflow, requests or sqlalchemy, or a package is missing.
            return False
        return True

    @cached_property
    def _client(self) -> "MlflowClient":
        return open_client(self.store)

    @cached_property
    def experiment_id(self) -> str:
        """Id of the store's experiment, which is made if missing."""
        found = self._client.get_experiment_by_name(self.store.experiment)
        if found is not None:
            return str(found.experiment_id)
        return str(self._client.create_experiment(self.store.experiment, self.store.artifacts))

    def open_run(
        self, run: str, *, tags: Mapping[str, str], time_ms: int, find: bool = False
    ) -> None:
        """Create a run, or take the one that this operation has created before.

        Its key is unique in its `kd.group`. With `find` take the one of the same `kd.role`,
        `kd.replicate` and `kd.checkpoint`. If there is none, as for a model trained elsewhere, a
        run is created and closed.
        """
        group = tags["kd.group"]
        if find:
            names = ("kd.role", "kd.replicate", "kd.checkpoint")
            wanted = " and ".join(f"tags.`{name}` = '{tags[name]}'" for name in names)
        else:
            wanted = f"tags.kd.group = '{group}' and attributes.run_name = '{run}'"
        held = self._newest(wanted, group)
        if held is None:
            held = self._client.create_run(
                self.experiment_id, start_time=time_ms, tags=dict(tags), run_name=run
            )
        self._remember(run, held)
        if find and held.info.status == "RUNNING" and self._groups[run] == group:
            self.close_run(run, status="FINISHED", time_ms=time_ms)

    def _newest(self, wanted: str, group: str) -> "Run | None":
        """The newest of the runs that are wanted; one of the group goes before."""
        found = self._client.search_runs([self.experiment_id], wanted)  # The newest come first.
        own = [run for run in found if run.data.tags.get("kd.group") == group]
        return next(iter(own or found), None)

    def _remember(self, run: str, held: "Run") -> None:
        self.run_ids[run] = held.info.run_id
        self._groups[run] = held.data.tags.get("kd.group")
        outputs = held.outputs.model_outputs if held.outputs else []
        self._model_ids[run] = outputs[-1].model_id if outputs else None

    def _look_up(self, run: str) -> None:
        """Learn group and model of a run of which only the id is at hand."""
        if run not in self._groups:
            self._remember(run, self._client.get_run(self.run_ids[run]))

    def log_params(self, run: str, *, params: Mapping[str, str]) -> None:
        """Log parameters."""
        from mlflow.entities import Param

        entities = [Param(name, value) for name, value in params.items()]
        self._client.log_batch(self.run_ids[run], params=entities)

    def log_metrics(self, run: str, *, points: Sequence[Point]) -> None:
        """Log points; those of the test set also with the run's model."""
        from mlflow.entities import Metric

        self._look_up(run)
        metrics = []
        for point in points:
            of_model = self._model_ids[run] if point.name.startswith("test/") else None
            values = (point.name, point.value, point.time_ms, point.step)
            metrics.append(Metric(*values, of_model))
        self._client.log_batch(self.run_ids[run], metrics=metrics)

    def set_tags(self, run: str, *, tags: Mapping[str, str]) -> None:
        """Set tags, new or changed."""
        from mlflow.entities import RunTag

        entities = [RunTag(name, value) for name, value in tags.items()]
        self._client.log_batch(self.run_ids[run], tags=entities)

    def log_inputs(self, run: str, *, datasets: Sequence[DatasetFacts]) -> None:
        """Log the data sets that a run used."""
        inputs = [_dataset_input(facts) for facts in datasets]
        self._client.log_inputs(self.run_ids[run], datasets=inputs)

    def log_artifact(self, run: str, *, path: str, content: bytes) -> None:
        """Log a small file under a path such as `figures/accuracy.png`."""
        self._client.log_stream(self.run_ids[run], io.BytesIO(content), path)

    def log_model(self, run: str, *, content: "ModelCheckpoint") -> None:
        """Log a trained model, unless the run already has one."""
        self._look_up(run)
        if self._model_ids[run] is not None:
            return
        from kd_pipeline.tracking.models import export_model, upload_model  # Imports torch.

        with tempfile.TemporaryDirectory() as folder:
            with self.exports():
                is_exported = export_model(content, Path(folder))
            if is_exported:
                held = self._client.get_run(self.run_ids[run])
                self._model_ids[run] = upload_model(Path(folder), self._client, held)

    @contextmanager
    def exports(self) -> Iterator[None]:
        """Export inside the block: the time does not count as waiting for MLflow."""
        with self.exporting:
            begun = time.monotonic()
            try:
                yield
            finally:
                self.export_seconds += time.monotonic() - begun

    def save_view(self, _run: str, *, key: str, models: Sequence[str], group: str) -> None:
        """Save a view of some models' runs for the chart page at `store.chart_link`.

        Runs are selected by the group where all are of that group, else by their ids.
        """
        known = [model for model in models if model in self.run_ids]
        for model in known:
            self._look_up(model)
        if all(self._groups[model] == group for model in known):
            shown = group_filter(group)
        else:
            shown = runs_filter([self.run_ids[model] for model in known])
        self._client.set_experiment_tag(self.experiment_id, f"{TAG_PREFIX}{key}", view_tag(shown))

    def close_run(self, run: str, *, status: str, time_ms: int) -> None:
        """End a run as `FINISHED`, `FAILED` or `KILLED`."""
        self._client.set_terminated(self.run_ids[run], status, end_time=time_ms)

    def close_dead_runs(self, _run: str, *, own_pid: int) -> None:
        """Mark as killed the runs that dead processes of this machine have left open."""
        wanted = f"attributes.status = 'RUNNING' and tags.`kd.host` = '{socket.gethostname()}'"
        for left in self._client.search_runs([self.experiment_id], wanted):
            pid = int(left.data.tags.get("kd.pid", "0"))
            # Called before that process opens runs: those under its number are older.
            if pid == own_pid or not is_alive(pid):
                self._client.set_tag(left.info.run_id, "kd.error", "the process was killed")
                self._client.set_terminated(left.info.run_id, "KILLED")


def _dataset_input(facts: DatasetFacts) -> "DatasetInput":
    from mlflow.entities import Dataset, DatasetInput, InputTag

    dataset = Dataset(
        name=facts.name,
        digest=facts.digest[:_MAX_DIGEST],
        source_type="code",
        source=json.dumps({"tags": {"catalog_entry": facts.catalog_entry}}),
        profile=json.dumps(dict(facts.profile)),
    )
    return DatasetInput(dataset, [InputTag("mlflow.data.context", facts.context)])
