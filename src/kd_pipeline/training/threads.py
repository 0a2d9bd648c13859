"""Small steps on one thread: starting and joining threads costs more than they save."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from kd_pipeline.models.checkpoint import count_macs
from kd_pipeline.models.classifier import Classifier

MAX_MACS_ON_ONE_THREAD = 30_000_000
"""Multiply-accumulates of a step's forward pass, of all replicates that train together."""


@contextmanager
def threads_for(classifiers: Sequence[Classifier], *, batch_size: int) -> Iterator[None]:
    """Compute on one thread where a step is small, else on as many as the run has.

    A rule of sizes, never of timing: sums round otherwise with another number of threads.
    """
    before, first = torch.get_num_threads(), classifiers[0]
    # Simulated int8 notes the range of whatever it is shown, and may not be tried on an image.
    if not any(isinstance(part, torch.fx.GraphModule) for part in first.network.modules()):
        macs = len(classifiers) * batch_size * count_macs(first)
        torch.set_num_threads(1 if macs <= MAX_MACS_ON_ONE_THREAD else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
