"""Operations that could not be sent, kept as JSON lines with models and files beside them."""

import json
import os
import shutil
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kd_pipeline.atomic import is_alive, replace_file
from kd_pipeline.tracking.operations import DatasetFacts, Operation, Point
from kd_pipeline.tracking.sender import Sender
from kd_pipeline.tracking.settings import MLflowParams
from kd_pipeline.tracking.store import Store, locate_store

_RECORDS: Mapping[str, Any] = {"points": Point, "datasets": DatasetFacts}


class Unsent:
    """A file of unsent operations, which is made for the first of them."""

    def __init__(self, file: Path, store: Store) -> None:
        """Keep operations for `store` in `file`."""
        self.file = file
        self._store = store
        self._run_ids: dict[str, str] = {}
        self._count = 0

    def keep(self, operation: Operation, run_ids: Mapping[str, str]) -> None:
        """Append an operation and, where they have changed, the ids of the runs."""
        if self._count == 0:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            store = {"uri": self._store.public_uri, "experiment": self._store.experiment}
            writer = {"host": socket.gethostname(), "pid": os.getpid()}
            self._append({"kind": "Store", **store, **writer})
        if self._run_ids != run_ids:
            self._run_ids = dict(run_ids)
            self._append({"kind": "RunIds", "run_ids": self._run_ids})
        self._count += 1
        line = {"kind": operation.kind, "run": operation.run, **operation.values}
        if "content" in line:
            line["beside"] = str(self._count)
            _write(line.pop("content"), self.file.with_suffix("") / line["beside"])
        self._append(line)

    def _append(self, line: Mapping[str, Any]) -> None:
        with self.file.open("a") as lines:
            lines.write(json.dumps(line, default=vars) + "\n")


def find_unsent(folder: Path) -> list[Path]:
    """The files of unsent operations, oldest first."""
    return sorted(folder.glob("unsent-*.jsonl"))


def is_being_written(file: Path) -> bool:
    """Whether the process that made the file is alive on this machine."""
    with file.open() as lines:
        header = json.loads(lines.readline())
    return bool(header["host"] == socket.gethostname() and is_alive(header["pid"]))


def send_unsent(file: Path, project: Path) -> tuple[int, Exception | None]:
    """Send the operations of a file in their order and remove them from it.

    An operation that the store refuses stays in the file and the next ones are tried; when the
    store does not answer, all that is left stays.

    Args:
        file: As `Unsent` wrote it.
        project: Its root. `MLFLOW_TRACKING_URI` overrides the store that the file names.

    Returns:
        How many operations were sent, and the last error if some were not.
    """
    header, *lines = [json.loads(line) for line in file.read_text().splitlines()]
    params = MLflowParams(tracking_uri=header["uri"], experiment=header["experiment"])
    sender = Sender(locate_store(project, params))
    num_sent, left, last_error = 0, [], None
    for at, line in enumerate(lines):
        if line["kind"] == "RunIds":
            sender.run_ids = line["run_ids"] | sender.run_ids
            continue
        try:
            sender.send(_decode(line, file.with_suffix("")))
            num_sent += 1
        except Exception as error:  # Of mlflow, requests, sqlalchemy or this project.
            last_error = error
            left.append(line)
            if not sender.is_reachable():
                left += lines[at + 1 :]
                break
    if left:
        kept = [header, {"kind": "RunIds", "run_ids": sender.run_ids}, *left]
        with replace_file(file) as temporary:
            temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))
    else:
        file.unlink()
        shutil.rmtree(file.with_suffix(""), ignore_errors=True)
    return num_sent, last_error


def _decode(line: Mapping[str, Any], folder: Path) -> Operation:
    values = {key: value for key, value in line.items() if key not in ("kind", "run", "beside")}
    for name in values.keys() & _RECORDS.keys():
        values[name] = tuple(_RECORDS[name](**record) for record in values[name])
    if "beside" in line:
        values["content"] = _read(folder / line["beside"])
    return Operation(line["kind"], line["run"], values)


def _write(content: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
        return
    from kd_pipeline.models.checkpoint import write_checkpoint

    write_checkpoint(content, path)


def _read(path: Path) -> Any:
    if path.is_file():
        return path.read_bytes()
    from kd_pipeline.models.checkpoint import read_checkpoint

    return read_checkpoint(path)
