"""What MLflow could not be told yet, on disk: JSON lines, with models and files beside them."""

import json
import os
import shutil
import socket
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kd_pipeline.tracking import operations as ops
from kd_pipeline.tracking.operations import Operation
from kd_pipeline.tracking.sender import Sender, is_alive
from kd_pipeline.tracking.store import Store, locate_store

_KINDS: Mapping[str, Any] = {
    kind.__name__: kind
    for kind in (
        ops.OpenRun,
        ops.LogParams,
        ops.LogMetrics,
        ops.SetTags,
        ops.LogInputs,
        ops.LogArtifact,
        ops.LogModel,
        ops.SaveView,
        ops.CloseRun,
        ops.CloseDeadRuns,
    )
}


class Unsent:
    """A file of operations that wait; it is made when there is one to keep."""

    def __init__(self, file: Path, store: Store) -> None:
        """Take `file` for operations that are meant for `store`."""
        self.file = file
        self._store = store
        self._known: dict[str, str] = {}
        self._count = 0

    def keep(self, operation: Operation, run_ids: Mapping[str, str]) -> None:
        """Append one operation, and the ids of the runs that it may speak of."""
        if self._count == 0:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            uri, experiment = self._store.public_uri, self._store.experiment
            writer = {"host": socket.gethostname(), "pid": os.getpid()}
            self._append({"kind": "Store", "uri": uri, "experiment": experiment, **writer})
        if self._known != run_ids:
            self._known = dict(run_ids)
            self._append({"kind": "RunIds", "run_ids": self._known})
        self._count += 1
        self._append(self._encode(operation))

    def _append(self, line: Mapping[str, Any]) -> None:
        with self.file.open("a") as lines:
            lines.write(json.dumps(line) + "\n")

    def _encode(self, operation: Operation) -> dict[str, Any]:
        kind = type(operation).__name__
        beside = self.file.with_suffix("") / str(self._count)
        match operation:
            case ops.LogModel(run, checkpoint):
                from kd_pipeline.models.checkpoint import write_checkpoint

                write_checkpoint(checkpoint, beside)
                return {"kind": kind, "run": run, "beside": str(self._count)}
            case ops.LogArtifact(run, path, content):
                beside.parent.mkdir(parents=True, exist_ok=True)
                beside.write_bytes(content)
                return {"kind": kind, "run": run, "path": path, "beside": str(self._count)}
            case _:
                return {"kind": kind, **asdict(operation)}


def find_unsent(folder: Path) -> list[Path]:
    """The files of operations that wait, oldest first."""
    return sorted(folder.glob("unsent-*.jsonl"))


def is_being_written(file: Path) -> bool:
    """Whether the run that keeps operations here still goes on, on this machine."""
    with file.open() as lines:
        header = json.loads(lines.readline())
    return bool(header["host"] == socket.gethostname() and is_alive(header["pid"]))


def send_unsent(file: Path, project: Path) -> tuple[int, Exception | None]:
    """Send a file of kept operations in their order, and remove what was sent.

    An operation that the store refuses stays in the file and the next ones are tried; when the
    store does not answer, all that is left stays.

    Args:
        file: As `Unsent` wrote it.
        project: Its root. `MLFLOW_TRACKING_URI` overrides where they were meant to go.

    Returns:
        How many operations were sent, and the last reason why some were not.
    """
    header, *lines = [json.loads(line) for line in file.read_text().splitlines()]
    sender = Sender(locate_store(project, uri=header["uri"], experiment=header["experiment"]))
    num_sent, left, reason = 0, [], None
    for at, line in enumerate(lines):
        if line["kind"] == "RunIds":
            sender.run_ids = line["run_ids"] | sender.run_ids
            continue
        try:
            sender.send(_decode(line, file.with_suffix("")))
            num_sent += 1
        except Exception as error:  # Of whatever kind: what matters is whether MLflow is there.
            reason = error
            left.append(line)
            if not sender.is_reachable():
                left += lines[at + 1 :]
                break
    _keep_only(file, [header, {"kind": "RunIds", "run_ids": sender.run_ids}, *left], empty=not left)
    return num_sent, reason


def _keep_only(file: Path, lines: list[dict[str, Any]], *, empty: bool) -> None:
    if empty:
        file.unlink()
        shutil.rmtree(file.with_suffix(""), ignore_errors=True)
        return
    temporary = file.with_suffix(".new")
    temporary.write_text("".join(json.dumps(line) + "\n" for line in lines))
    temporary.replace(file)


def _decode(line: Mapping[str, Any], folder: Path) -> Operation:
    fields = {key: value for key, value in line.items() if key not in ("kind", "beside")}
    match line["kind"]:
        case "LogModel":
            from kd_pipeline.models.checkpoint import read_checkpoint

            return ops.LogModel(fields["run"], read_checkpoint(folder / line["beside"]))
        case "LogArtifact":
            return ops.LogArtifact(**fields, content=(folder / line["beside"]).read_bytes())
        case "LogMetrics":
            points = tuple(ops.Point(**point) for point in fields["points"])
            return ops.LogMetrics(fields["run"], points)
        case "LogInputs":
            datasets = tuple(ops.DatasetFacts(**facts) for facts in fields["datasets"])
            return ops.LogInputs(fields["run"], datasets)
        case kind:
            operation: Operation = _KINDS[kind](**fields)
            return operation
