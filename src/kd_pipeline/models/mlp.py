"""Fully connected networks on flattened images."""

import math
from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from kd_pipeline.errors import ParameterError


def build_mlp(
    *,
    shape: tuple[int, int, int],
    num_classes: int,
    hidden: Sequence[int] = (256,),
    input_dropout: float = 0.0,
    hidden_dropout: float = 0.0,
) -> nn.Module:
    """ReLU layers and a linear head, with dropout before each (Hinton et al. 2015, §3)."""
    if not all(isinstance(width, int) and width >= 1 for width in hidden):
        raise ParameterError("arguments.hidden", "be a list of positive widths", hidden)
    for name, share in (("input_dropout", input_dropout), ("hidden_dropout", hidden_dropout)):
        if not 0 <= share < 1:
            raise ParameterError(f"arguments.{name}", "be in [0, 1)", share)
    layers: list[nn.Module] = [nn.Flatten()]
    if input_dropout:
        layers.append(nn.Dropout(input_dropout))
    fan_in = math.prod(shape)
    for width in hidden:
        layers += [nn.Linear(fan_in, width), nn.ReLU()]
        if hidden_dropout:
            layers.append(nn.Dropout(hidden_dropout))
        fan_in = width
    layers.append(nn.Linear(fan_in, num_classes))
    # Names of the weights in checkpoints begin with `layers`, as in `layers.1.weight`.
    return nn.Sequential(OrderedDict(layers=nn.Sequential(*layers)))
