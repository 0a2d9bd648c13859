"""One of several operations per image, with one call per operation and not per image."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Operation = Callable[[Tensor, Tensor], Tensor]
"""Maps some rows' images and the rows' positions, [rows], to the changed images."""


def per_row(function: Callable[[Tensor, Tensor], Tensor], values: Tensor) -> Operation:
    """Operation that calls a function with some rows' images and their `values` [batch]."""
    return lambda images, rows: function(images, values[rows])


def change_by_choice(
    images: Tensor, choices: Tensor, operations: Sequence[Operation | None]
) -> None:
    """Apply to every image its chosen operation, in place.

    Args:
        images: [batch, channels, height, width].
        choices: Positions among the operations, int64 [batch].
        operations: Each keeps shape and dtype, and treats every image by itself; None is the
            identity.
    """
    order = torch.argsort(choices, stable=True)
    # The one synchronisation with the device.
    ends = torch.bincount(choices, minlength=len(operations)).cumsum(0).tolist()
    for operation, start, end in zip(operations, [0, *ends], ends, strict=False):
        if operation is not None and end > start:
            rows = order[start:end]
            images.index_copy_(0, rows, operation(images.index_select(0, rows), rows))
