"""Rounds that alternate between contenders: a machine's speed drifts, their ratios do not."""

import time
from collections.abc import Callable, Mapping
from typing import TypeVar

import torch

Measured = TypeVar("Measured")


def alternate(
    contenders: Mapping[str, Callable[[], Measured]], rounds: int
) -> dict[str, list[Measured]]:
    """What each contender returned in each round, after one that does not count."""
    for contender in contenders.values():
        contender()
    measured: dict[str, list[Measured]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, contender in contenders.items():
            measured[name].append(contender())
    return measured


def seconds(work: Callable[[], object]) -> float:
    """How long work takes, on a GPU too."""
    _wait()
    started = time.perf_counter()
    work()
    _wait()
    return time.perf_counter() - started


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
