"""Fully connected networks on flattened images."""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kd_pipeline.errors import ParameterError


class Mlp(nn.Module):
    """ReLU layers with dropout before each, as in Hinton et al. 2015 (arXiv:1503.02531) §3."""

    def __init__(
        self,
        *,
        num_inputs: int,
        hidden: Sequence[int],
        num_classes: int,
        input_dropout: float = 0.0,
        hidden_dropout: float = 0.0,
    ) -> None:
        """Stack `hidden` layers of these widths and one linear head."""
        super().__init__()
        layers: list[nn.Module] = [nn.Flatten()]
        if input_dropout:
            layers.append(nn.Dropout(input_dropout))
        widths = [num_inputs, *hidden]
        for fan_in, fan_out in itertools.pairwise(widths):
            layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
            if hidden_dropout:
                layers.append(nn.Dropout(hidden_dropout))
        layers.append(nn.Linear(widths[-1], num_classes))
        self.layers = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        """Score images [batch, channels, height, width] into logits [batch, num_classes]."""
        logits: Tensor = self.layers(images)
        return logits


def build_mlp(
    *,
    shape: tuple[int, int, int],
    num_classes: int,
    hidden: Sequence[int] = (256,),
    input_dropout: float = 0.0,
    hidden_dropout: float = 0.0,
) -> Mlp:
    """Build an MLP for images of this shape."""
    if not all(isinstance(width, int) and width >= 1 for width in hidden):
        raise ParameterError("model.arguments.hidden", "be a list of positive widths", hidden)
    for name, share in (("input_dropout", input_dropout), ("hidden_dropout", hidden_dropout)):
        if not 0 <= share < 1:
            raise ParameterError(f"model.arguments.{name}", "be in [0, 1)", share)
    return Mlp(
        num_inputs=int(torch.Size(shape).numel()),
        hidden=hidden,
        num_classes=num_classes,
        input_dropout=input_dropout,
        hidden_dropout=hidden_dropout,
    )
