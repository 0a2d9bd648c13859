"""Operations that could not be sent, kept as JSON lines with models and files beside them.

A sending adds lines to the file too: which lines are sent, and the ids of the runs. It may end at
any moment; the next one goes on from there.
"""

import json
import logging
import os
import shutil
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kd_pipeline.atomic import is_alive
from kd_pipeline.errors import DataError
from kd_pipeline.tracking.operations import DatasetFacts, Operation, Point, batches, merged
from kd_pipeline.tracking.sender import Sender
from kd_pipeline.tracking.settings import MLflowParams
from kd_pipeline.tracking.store import Store, locate_store

_RECORDS: Mapping[str, Any] = {"points": Point, "datasets": DatasetFacts}
_NO_OPERATIONS = _STORE, _RUN_IDS, _SENT = "Store", "RunIds", "Sent"

logger = logging.getLogger(__name__)


class Unsent:
    """A file of unsent operations, which is made for the first of them."""

    def __init__(self, file: Path, store: Store) -> None:
        """Keep operations for `store` in `file`."""
        self.file = file
        self.count = 0
        """Of the operations that were kept."""
        self._store = store
        self._run_ids: dict[str, str] = {}

    def keep(self, operation: Operation, run_ids: Mapping[str, str]) -> None:
        """Append an operation and, where they have changed, the ids of the runs."""
        # Another machine, where this process does not show, may have sent and removed the file.
        if not self.file.exists():
            self._run_ids = {}
            self.file.parent.mkdir(parents=True, exist_ok=True)
            store = {"uri": self._store.public_uri, "experiment": self._store.experiment}
            writer = {"host": socket.gethostname(), "pid": os.getpid()}
            _append(self.file, {"kind": _STORE, **store, **writer})
        if self._run_ids != run_ids:
            self._run_ids = dict(run_ids)
            _append(self.file, {"kind": _RUN_IDS, "run_ids": self._run_ids})
        self.count += 1
        line = {"kind": operation.kind, "run": operation.run, **operation.values}
        if "content" in line:
            line["beside"] = str(self.count)
            _write(line.pop("content"), self.file.with_suffix("") / line["beside"])
        _append(self.file, line)


def find_unsent(folder: Path) -> list[Path]:
    """The files of unsent operations, oldest first."""
    return sorted(folder.glob("unsent-*.jsonl"))


def is_being_written(file: Path) -> bool:
    """Whether the process that made the file is alive on this machine.

    Raises:
        DataError: If the first line is damaged, which names it.
    """
    header = _read_file(file).header
    return bool(header["host"] == socket.gethostname() and is_alive(header["pid"]))


def send_unsent(file: Path, project: Path) -> tuple[int, Exception | None]:
    """Send what is left in a file that another process wrote; see `send_file`.

    Args:
        file: As `Unsent` wrote it.
        project: Its root. `MLFLOW_TRACKING_URI` overrides the store that the file names.

    Raises:
        DataError: If the first line is damaged, which names the store.
    """
    header = _read_file(file).header
    params = MLflowParams(tracking_uri=header["uri"], experiment=header["experiment"])
    return send_file(file, Sender(locate_store(project, params)))


def send_file(file: Path, sender: Sender) -> tuple[int, Exception | None]:
    """Send the operations of a file that are left, in their order; remove it after the last.

    An operation that the store refuses stays and the next ones are tried; when the store does not
    answer, all that is left stays. A damaged line is set aside, with a warning.

    Returns:
        How many operations were sent, and the last error if some were not.
    """
    content = _read_file(file)
    _set_aside(content.damaged, file)
    sender.run_ids = content.run_ids | sender.run_ids
    num_sent, last_error, numbers = 0, None, list(content.operations)
    for batch in batches([(line["kind"], line["run"]) for line in content.operations.values()]):
        of_batch, before = [numbers[at] for at in batch], dict(sender.run_ids)
        try:
            lines = [content.operations[number] for number in of_batch]
            sender.send(merged([_decode(line, file.with_suffix("")) for line in lines]))
        except Exception as error:  # Of mlflow, requests, sqlalchemy or this project.
            last_error = error
            if not sender.is_reachable():
                break
            continue
        num_sent += len(of_batch)
        if sender.run_ids != before:
            _append(file, {"kind": _RUN_IDS, "run_ids": sender.run_ids})
        _append(file, {"kind": _SENT, "lines": of_batch})
    if last_error is None:
        shutil.rmtree(file.with_suffix(""), ignore_errors=True)
        file.unlink()
    return num_sent, last_error


@dataclass(frozen=True)
class _Content:
    """What a file holds and is still to be done, by number of the line, from 1."""

    header: Mapping[str, Any]
    run_ids: dict[str, str]
    operations: dict[int, Mapping[str, Any]]
    damaged: dict[int, bytes]


def _read_file(file: Path) -> _Content:
    texts = dict(enumerate(file.read_bytes().split(b"\n"), start=1))
    lines = {number: _parse(text) for number, text in texts.items() if text.strip()}
    whole = [line for line in lines.values() if line is not None]
    headers = [line for line in whole if line["kind"] == _STORE]
    if not headers:
        raise DataError(f"{file} must begin with the name of a store, got a damaged line")
    run_ids = [line["run_ids"] for line in whole if line["kind"] == _RUN_IDS]
    sent = {number for line in whole if line["kind"] == _SENT for number in line["lines"]}
    left = {number: line for number, line in lines.items() if number not in sent}
    return _Content(
        headers[0],
        {run: run_id for ids in run_ids for run, run_id in ids.items()},
        {n: line for n, line in left.items() if line and line["kind"] not in _NO_OPERATIONS},
        {number: texts[number] for number, line in left.items() if line is None},
    )


def _parse(text: bytes) -> Mapping[str, Any] | None:
    try:
        line = json.loads(text)
    except ValueError:
        return None
    return line if isinstance(line, dict) and "kind" in line else None


def _set_aside(damaged: Mapping[int, bytes], file: Path) -> None:
    aside = file.with_suffix(".damaged")
    for number, text in damaged.items():
        logger.warning("%s, line %d is damaged: set aside in %s", file, number, aside.name)
        with aside.open("ab") as lines:
            lines.write(b"line %d: %s\n" % (number, text))
        _append(file, {"kind": _SENT, "lines": [number]})


def _append(file: Path, line: Mapping[str, Any]) -> None:
    with file.open("a") as lines:
        # The end of a line is written with the next one: that is whole even if this one is not.
        lines.write(("\n" if lines.tell() else "") + json.dumps(line, default=vars))


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
