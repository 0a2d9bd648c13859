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
) -> Tensor:
    """Apply to every image its chosen operation; the result is a new tensor.

    Args:
        images: [batch, channels, height, width].
        choices: Positions among the operations, int64 [batch].
        operations: Each keeps shape and dtype, and treats every image by itself; None is the
            identity.
    """
    # The one synchronisation with the device.
    counts = torch.bincount(choices, minlength=len(operations)).tolist()
    order = torch.argsort(choices)
    groups = torch.split(images.index_select(0, order), counts)
    changed = [
        operation(group, rows) if operation is not None and len(rows) > 0 else group
        for operation, group, rows in zip(
            operations, groups, torch.split(order, counts), strict=True
        )
    ]
    return torch.cat(changed).index_select(0, torch.argsort(order))
