"""What there is to tell MLflow, as plain values: they wait in a queue, or on disk.

Every operation names its run by a key of this Kedro run's own (`student_kd-0`), so that it can
be made before the server has given the run an id, or while there is no server at all.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kd_pipeline.models.checkpoint import ModelCheckpoint

COMPARISON = "comparison"
"""Role and key of the run that holds the comparison of all others."""
SOFT_TARGETS = "soft_targets"
"""Role and key of the run that describes a cache made without a comparison."""


def now_ms() -> int:
    """Milliseconds since 1970, as MLflow counts time."""
    return int(time.time() * 1000)


@dataclass(frozen=True)
class OpenRun:
    """Create a run; or, where `find` is set, take the one that made the same checkpoint."""

    run: str
    tags: Mapping[str, str]
    find: bool = False
    """Look for tags `kd.role`, `kd.replicate` and `kd.checkpoint` first. Where nothing is
    found, for a model trained elsewhere, a run is made that is finished from the start."""
    time_ms: int = field(default_factory=now_ms)


@dataclass(frozen=True)
class LogParams:
    """Parameters, flat and as text."""

    run: str
    params: Mapping[str, str]


@dataclass(frozen=True)
class Point:
    """One value of one metric."""

    name: str
    value: float
    step: int
    time_ms: int


@dataclass(frozen=True)
class LogMetrics:
    """Points of one run."""

    run: str
    points: tuple[Point, ...]


@dataclass(frozen=True)
class SetTags:
    """Tags of a run, new or changed."""

    run: str
    tags: Mapping[str, str]


@dataclass(frozen=True)
class DatasetFacts:
    """A data set that a run used, known by its digest."""

    name: str
    digest: str
    context: str
    """`training` or `evaluation`."""
    catalog_entry: str
    profile: Mapping[str, Any]


@dataclass(frozen=True)
class LogInputs:
    """Data sets that a run used."""

    run: str
    datasets: tuple[DatasetFacts, ...]


@dataclass(frozen=True)
class LogArtifact:
    """A small file: a figure, a report."""

    run: str
    path: str
    """Inside the run's artifacts, as `figures/accuracy.png`."""
    content: bytes


@dataclass(frozen=True)
class LogModel:
    """A trained model; skipped where the run already has one."""

    run: str
    checkpoint: "ModelCheckpoint"


@dataclass(frozen=True)
class SaveView:
    """A view of the chart page that `store.chart_link` opens."""

    run: str
    key: str
    models: tuple[str, ...]
    """Keys of the runs that it shows."""


@dataclass(frozen=True)
class CloseRun:
    """The end of a run: `FINISHED`, `FAILED` or `KILLED`."""

    run: str
    status: str
    time_ms: int = field(default_factory=now_ms)


@dataclass(frozen=True)
class CloseDeadRuns:
    """Mark as killed what processes that no longer live left running on this machine."""

    run: str = ""


Operation = (
    OpenRun
    | LogParams
    | LogMetrics
    | SetTags
    | LogInputs
    | LogArtifact
    | LogModel
    | SaveView
    | CloseRun
    | CloseDeadRuns
)
