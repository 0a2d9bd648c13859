"""What training and long loops say while they go on, and who listens.

The rooms that do the work know neither the terminal nor MLflow: they emit events, and the hooks
listen. An event has no role: the listener knows which Kedro node, and so which namespace, runs.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class TrainingStarted:
    """One model begins to train."""

    replicate: int
    parameters: Mapping[str, Any]
    """Nested or flat settings that this model trains under, as in YAML."""
    num_epochs: int
    steps_per_epoch: int


@dataclass(frozen=True)
class EpochEnded:
    """One pass is over; `metrics` are named as in MLflow (`train/loss`, ...)."""

    replicate: int
    epoch: int
    """Epochs done, from 1."""
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class TrainingEnded:
    """One model is trained; its checkpoint has this fingerprint."""

    replicate: int
    fingerprint: str
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Facts measured once: `model/parameters`, `model/macs`, `model/size_bytes`,
    `cost/train_seconds`."""


@dataclass(frozen=True)
class Progress:
    """A long loop got further. A loop ends with done == total."""

    description: str
    done: int
    total: int
    unit: str
    detail: str = ""


Event = TrainingStarted | EpochEnded | TrainingEnded | Progress
Listener = Callable[[Event], None]

_listeners: list[Listener] = []
_longer_loops: list[tuple[str, int, int]] = []


def emit(event: Event) -> None:
    """Hand an event to every listener, in the order in which they came."""
    if isinstance(event, Progress):
        for description, done, total in reversed(_longer_loops):
            event = replace(event, description=description, done=done + event.done, total=total)
    for listener in tuple(_listeners):
        listener(event)


@contextmanager
def part_of(description: str, *, done: int, total: int) -> Iterator[None]:
    """Tell every `Progress` emitted inside the block as a stretch of one longer loop.

    Args:
        description: Of the longer loop.
        done: How far it was before.
        total: How long it is.
    """
    _longer_loops.append((description, done, total))
    try:
        yield
    finally:
        _longer_loops.pop()


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Hear every event emitted inside the block."""
    subscribe(listener)
    try:
        yield
    finally:
        unsubscribe(listener)


def subscribe(listener: Listener) -> None:
    """Hear every event from now on."""
    _listeners.append(listener)


def unsubscribe(listener: Listener) -> None:
    """Hear no more; a listener that never subscribed is ignored."""
    if listener in _listeners:
        _listeners.remove(listener)
