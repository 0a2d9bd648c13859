"""A small CNN family and the CIFAR ResNets."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from kd_pipeline.errors import ParameterError


def build_small_cnn(
    *,
    shape: tuple[int, int, int],
    num_classes: int,
    channels: Sequence[int] = (16, 32, 64),
    convolutions_per_stage: int = 1,
    dropout: float = 0.0,
) -> nn.Module:
    """Stages of 3x3 convolutions of these widths, with batch norm, ReLU, and pooling between.

    `dropout` is the fraction of the pooled features dropped before the head.
    """
    if not channels or min(shape[1:]) < 2 ** (len(channels) - 1):
        most = min(shape[1:]).bit_length()
        raise ParameterError(
            "arguments.channels",
            f"have 1 to {most} stages for images of {shape[1]}x{shape[2]}",
            list(channels),
        )
    layers: list[nn.Module] = []
    fan_in = shape[0]
    for stage, width in enumerate(channels):
        if stage:
            layers.append(nn.MaxPool2d(2))
        for _ in range(convolutions_per_stage):
            layers += [
                nn.Conv2d(fan_in, width, 3, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
            ]
            fan_in = width
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    if dropout:
        layers.append(nn.Dropout(dropout))
    return nn.Sequential(*layers, nn.Linear(fan_in, num_classes))


class _BasicBlock(nn.Module):
    def __init__(self, fan_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(fan_in, width, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.stride = stride
        self.extra_channels = width - fan_in

    def forward(self, features: Tensor) -> Tensor:
        out = F.relu(self.norm1(self.conv1(features)))
        out = self.norm2(self.conv2(out))
        # Option A of the paper: a shortcut without parameters, padded with zero channels.
        shortcut = features[:, :, :: self.stride, :: self.stride]
        shortcut = F.pad(shortcut, (0, 0, 0, 0, 0, self.extra_channels))
        return F.relu(out + shortcut)


class CifarResNet(nn.Module):
    """ResNet of 20, 32, 44, 56, 110 ... layers (He et al. 2015, arXiv:1512.03385, §4.2).

    `width_factor` 4 with depth 8 or 32 gives the resnet8x4 / resnet32x4 of the distillation
    literature up to their wider stem.
    """

    def __init__(
        self,
        *,
        shape: tuple[int, int, int],
        num_classes: int,
        depth: int = 20,
        width_factor: int = 1,
    ) -> None:
        """Three stages of (depth - 2) / 6 basic blocks."""
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ParameterError("arguments.depth", "be 6 n + 2 with n >= 1", depth)
        if width_factor < 1:
            raise ParameterError("arguments.width_factor", "be >= 1", width_factor)
        widths = [width_factor * width for width in (16, 32, 64)]
        self.conv = nn.Conv2d(shape[0], widths[0], 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(widths[0])
        blocks: list[nn.Module] = []
        fan_in = widths[0]
        for stage, width in enumerate(widths):
            for block in range((depth - 2) // 6):
                blocks.append(_BasicBlock(fan_in, width, 2 if stage and not block else 1))
                fan_in = width
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(fan_in, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Map images [batch, channels, height, width] to logits [batch, num_classes]."""
        features = self.blocks(F.relu(self.norm(self.conv(images))))
        logits: Tensor = self.head(features.mean(dim=(2, 3)))
        return logits
