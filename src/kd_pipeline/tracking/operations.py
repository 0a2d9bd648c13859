"""Operations on MLflow as plain values, which can be sent or kept on disk.

An operation names its run by a key (`student_kd-0`), not by MLflow's id, which a run has only once
the server has created it.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

LOG_METRICS = "log_metrics"


@dataclass(frozen=True)
class Operation:
    """The call of the method of `Sender` that `kind` names."""

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


def batches(operations: Sequence[tuple[str, str]]) -> Iterator[list[int]]:
    """Positions of operations, given as (kind, run), that can be sent in one call.

    Points that follow each other are one call per run: a call costs 10 ms or, over a network, much
    more, be it for one point or for a hundred.
    """
    for kind, group in groupby(range(len(operations)), key=lambda at: operations[at][0]):
        if kind != LOG_METRICS:
            yield from ([at] for at in group)
            continue
        by_run: dict[str, list[int]] = {}
        for at in group:
            by_run.setdefault(operations[at][1], []).append(at)
        yield from by_run.values()


def merged(batch: Sequence[Operation]) -> Operation:
    """The one operation that a batch is."""
    if len(batch) == 1:
        return batch[0]
    points = [point for operation in batch for point in operation.values["points"]]
    return Operation(LOG_METRICS, batch[0].run, {"points": points})
