"""A file's bytes as a checkpoint's state: what is not weights by name travels like them."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

_CONTENT = "content"


def state_of(content: bytes) -> dict[str, Tensor]:
    """Hold bytes as one uint8 tensor."""
    return {_CONTENT: torch.from_numpy(np.frombuffer(bytearray(content), dtype=np.uint8))}


def bytes_of(state: Mapping[str, Tensor]) -> bytes:
    """The bytes that `state_of` was given."""
    return state[_CONTENT].numpy().tobytes()
