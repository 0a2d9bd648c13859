"""Several operations over one batch, each image by its own: a call per operation, not per image."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Operation = Callable[[Tensor, Tensor], Tensor]
"""Takes some rows' images and the rows' positions, [rows]; gives these images changed."""


def change_by_choice(
    images: Tensor, choices: Tensor, operations: Sequence[Operation | None]
) -> None:
    """Put every image through the operation that was chosen for it, in place.

    Args:
        images: [batch, channels, height, width].
        choices: Positions among the operations, int64 [batch].
        operations: Each keeps shape and dtype, and treats every image by itself; None changes
            nothing.
    """
    order = torch.argsort(choices, stable=True)
    # The one wait for the device: which rows each operation gets.
    ends = torch.bincount(choices, minlength=len(operations)).cumsum(0).tolist()
    for operation, start, end in zip(operations, [0, *ends], ends, strict=False):
        if operation is not None and end > start:
            rows = order[start:end]
            images.index_copy_(0, rows, operation(images.index_select(0, rows), rows))
