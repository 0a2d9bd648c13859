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
    # The one synchronisation with the device.
    counts = torch.bincount(choices, minlength=len(operations)).tolist()
    by_operation = torch.split(torch.argsort(choices), counts)
    for operation, rows in zip(operations, by_operation, strict=True):
        if operation is not None and len(rows) > 0:
            images.index_copy_(0, rows, operation(images.index_select(0, rows), rows))
