"""Events of training and of long loops, and their listeners.

Packages that train or label depend on neither the terminal nor MLflow: they emit events, and hooks
subscribe. Events carry no role (teacher, student): hooks take that from the running Kedro node.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class TrainingStarted:
    """The training of one model begins."""

    replicate: int
    parameters: Mapping[str, Any]
    """Settings of this training as in YAML, nested or flat."""
    num_epochs: int


@dataclass(frozen=True)
class EpochEnded:
    """One epoch is over; `metrics` are named as in MLflow (`train/loss`, ...)."""

    replicate: int
    epoch: int
    """Epochs done, from 1."""
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class TrainingEnded:
    """The training of one model is over; `fingerprint` is its checkpoint's."""

    replicate: int
    fingerprint: str
    metrics: Mapping[str, float] = field(default_factory=dict)
    """`model/parameters`, `model/macs`, `model/size_bytes`, `cost/train_seconds`."""


@dataclass(frozen=True)
class TrialEnded:
    """One trial of a sweep is over: the replicates of an arm under the values that were drawn."""

    sweep: str
    """Id of what all its trials have in common: data, shared settings, objective."""
    number: int
    state: str
    """`complete` or `pruned`."""
    parameters: Mapping[str, Any]
    """Settings of its trainings, as those of `TrainingStarted`."""
    curves: Mapping[int, Mapping[str, float]]
    """Metrics by epoch, means over the replicates."""
    metrics: Mapping[str, float]
    """`cost/train_seconds`."""


@dataclass(frozen=True)
class Progress:
    """Progress of a long loop; the last one has done == total."""

    description: str
    done: int
    total: int
    unit: str
    detail: str = ""


Event = TrainingStarted | EpochEnded | TrainingEnded | TrialEnded | Progress
Listener = Callable[[Event], None]

_listeners: list[Listener] = []
_longer_loops: list[tuple[str, int, int]] = []


def emit(event: Event) -> None:
    """Pass an event to every listener, in the order of subscription."""
    if isinstance(event, Progress):
        for description, done, total in reversed(_longer_loops):
            event = replace(event, description=description, done=done + event.done, total=total)
    for listener in tuple(_listeners):
        listener(event)


@contextmanager
def part_of(description: str, *, done: int, total: int) -> Iterator[None]:
    """Turn each `Progress` emitted inside the block into progress of one longer loop.

    Args:
        description: Of the longer loop.
        done: Of the longer loop, before the block.
        total: Of the longer loop.
    """
    _longer_loops.append((description, done, total))
    try:
        yield
    finally:
        _longer_loops.pop()


@contextmanager
def listening_alone(listener: Listener) -> Iterator[None]:
    """Pass every event inside the block to this listener and to no other."""
    others = _listeners.copy()
    _listeners[:] = [listener]
    try:
        yield
    finally:
        _listeners[:] = others


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Subscribe a listener inside the block."""
    subscribe(listener)
    try:
        yield
    finally:
        unsubscribe(listener)


def subscribe(listener: Listener) -> None:
    """Call a listener with every event until it is unsubscribed."""
    _listeners.append(listener)


def unsubscribe(listener: Listener) -> None:
    """End a subscription; a listener without one is ignored."""
    if listener in _listeners:
        _listeners.remove(listener)
