"""What a model trains on, and in which order: every batch a pure function of seed and step."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kd_pipeline.data.images import ImageSet
from kd_pipeline.randomness import derive_seed, shuffled_order


@dataclass(frozen=True)
class TrainingRows:
    """The examples that one model learns from."""

    example_ids: Tensor
    """int64 [num_rows], unique."""
    pixels_of: Callable[[Tensor], Tensor]
    """Maps positions int64 [batch] to uint8 [batch, channels, height, width]."""
    labels: Tensor
    """int64 [num_rows], NO_LABEL where there is none or it may not be used."""
    has_soft_target: Tensor | None = None
    """bool [num_rows]; None where every row has one."""

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.example_ids)


@dataclass(frozen=True)
class Partners:
    """The examples that a policy may mix into others: the transfer set, whoever is trained."""

    example_ids: Tensor
    """int64 [num_partners], ascending."""
    pixels_of: Callable[[Tensor], Tensor]
    """Maps positions among them to uint8 [batch, channels, height, width]."""
    labels: Tensor
    """int64 [num_partners], NO_LABEL where there is none or it may not be used."""

    def positions(self, example_ids: Tensor) -> Tensor:
        """Where among the partners these examples are."""
        return torch.searchsorted(self.example_ids, example_ids)


def pixel_reader(
    images: ImageSet, example_ids: NDArray[np.int64], *, device: str, budget_bytes: int
) -> Callable[[Tensor], Tensor]:
    """Read pixels by position: from one tensor on the device where they fit, else from disk.

    Args:
        images: In memory or memory-mapped.
        example_ids: int64 [num_rows].
        device: Where the pixels are wanted.
        budget_bytes: More pixels than this are read batch by batch from where `images` has them.
    """
    bytes_per_image = int(np.prod(images.pixels.shape[1:]))
    if len(example_ids) * bytes_per_image <= budget_bytes:
        pixels = images.take(example_ids).to(device)
        return lambda positions: pixels[positions]
    return lambda positions: images.take(example_ids[positions.cpu().numpy()]).to(device)


@dataclass(frozen=True)
class BatchOrder:
    """An endless stream of passes over the rows, cut into full batches.

    Each pass is a new shuffle keyed by (seed, pass, example id). Batches run across the end of a
    pass, so that all are full, no row is dropped, and arms with fewer rows take as many steps.
    """

    example_ids: Tensor
    seed: int
    batch_size: int

    def steps(self, first: int, count: int) -> tuple[Tensor, Tensor]:
        """Rows of `count` steps from step `first` on.

        Returns:
            Positions int64 [count, batch_size] and the number of the pass that each belongs to,
            which is how often its example was seen before.
        """
        num_rows = len(self.example_ids)
        start, stop = first * self.batch_size, (first + count) * self.batch_size
        passes = range(start // num_rows, (stop - 1) // num_rows + 1)
        shuffled = torch.cat([self._pass(number) for number in passes])
        offset = start - passes.start * num_rows
        positions = shuffled[offset : offset + stop - start]
        numbers = torch.arange(start, stop, device=positions.device) // num_rows
        shape = (count, self.batch_size)
        return positions.view(shape), numbers.view(shape)

    def _pass(self, number: int) -> Tensor:
        stream = derive_seed(self.seed, "batch order", number)
        return shuffled_order(self.example_ids, stream=stream)
