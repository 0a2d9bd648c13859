"""Operations on MLflow as plain values, which can be sent or kept on disk.

An operation names its run by a key (`student_kd-0`), not by MLflow's id, which a run has only once
the server has created it.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Operation:
    """The call of a method of `Sender`; kind `CloseRun` is `close_run`."""

    kind: str
    run: str
    values: Mapping[str, Any]
    """Arguments by name; JSON-able, but for `content`."""


@dataclass(frozen=True)
class Point:
    """One value of one metric."""

    name: str
    value: float
    step: int
    time_ms: int


@dataclass(frozen=True)
class DatasetFacts:
    """A data set that a run used, identified by its digest."""

    name: str
    digest: str
    context: str
    """`training` or `evaluation`."""
    catalog_entry: str
    profile: Mapping[str, Any]


def now_ms() -> int:
    """Milliseconds since 1970, as MLflow counts time."""
    return int(time.time() * 1000)
