"""A small CNN family, the CIFAR ResNets, and a CNN that trains fast."""

from collections.abc import Sequence

import torch
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
    if not all(isinstance(width, int) and width >= 1 for width in channels):
        raise ParameterError("arguments.channels", "be a list of positive widths", channels)
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
    def __init__(self, fan_in: int, width: int, stride: int, shortcut: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(fan_in, width, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.stride = stride
        self.extra_channels = width - fan_in
        self.projection: nn.Module | None = None
        if shortcut == "convolution" and (stride > 1 or self.extra_channels):
            self.projection = nn.Conv2d(fan_in, width, 1, stride=stride)

    def forward(self, features: Tensor) -> Tensor:
        out = F.relu(self.norm1(self.conv1(features)))
        out = self.norm2(self.conv2(out))
        return F.relu(out + self._shortcut(features))

    def _shortcut(self, features: Tensor) -> Tensor:
        if self.projection is not None:
            projected: Tensor = self.projection(features)
            return projected
        if self.stride == 1 and not self.extra_channels:
            return features
        # Option A of the paper: a shortcut without parameters, padded with zero channels.
        strided = features[:, :, :: self.stride, :: self.stride]
        return F.pad(strided, (0, 0, 0, 0, 0, self.extra_channels))


class CifarResNet(nn.Module):
    """ResNet of 20, 32, 44, 56, 110 ... layers (He et al. 2015, arXiv:1512.03385, §4.2).

    `width_factor` 4 with depth 8 or 32 gives the resnet8x4 / resnet32x4 of the distillation
    literature up to their wider stem. Depth 8 with `shortcut: convolution` is the ResNet-8 of
    MLPerf Tiny (Banbury et al. 2021, arXiv:2106.07597) up to biases that batch norm undoes.
    """

    def __init__(
        self,
        *,
        shape: tuple[int, int, int],
        num_classes: int,
        depth: int = 20,
        width_factor: int = 1,
        shortcut: str = "padding",
    ) -> None:
        """Three stages of (depth - 2) / 6 basic blocks.

        `shortcut`, where a block changes its shape: `padding` with zero channels, without
        parameters, or a 1x1 `convolution`.
        """
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ParameterError("arguments.depth", "be 6 n + 2 with n >= 1", depth)
        if width_factor < 1:
            raise ParameterError("arguments.width_factor", "be >= 1", width_factor)
        if shortcut not in (legal := ("padding", "convolution")):
            raise ParameterError("arguments.shortcut", "be known", shortcut, legal=legal)
        widths = [width_factor * width for width in (16, 32, 64)]
        self.conv = nn.Conv2d(shape[0], widths[0], 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(widths[0])
        blocks: list[nn.Module] = []
        fan_in = widths[0]
        for stage, width in enumerate(widths):
            for block in range((depth - 2) // 6):
                stride = 2 if stage and not block else 1
                blocks.append(_BasicBlock(fan_in, width, stride, shortcut))
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


class FastCnn(nn.Module):
    """A CNN for small images that reaches its accuracy in few epochs, after airbench94.

    As in Jordan 2024 (arXiv:2404.00498): a 2x2 convolution that decorrelates its patches, three
    blocks that pool early, convolutions that begin as the identity, logits scaled down. Not as
    there: the first filters are Haar wavelets of sums and differences of channels, nearly
    uncorrelated on natural images, and batch norm gives them unit variance, so that no training
    image is needed to build it; they are trained like all others.
    """

    def __init__(
        self,
        *,
        shape: tuple[int, int, int],
        num_classes: int,
        widths: Sequence[int] = (64, 256, 256),
    ) -> None:
        """Three blocks of these widths; images of at least 25 x 25 pixels."""
        super().__init__()
        if len(widths) != 3 or min(widths) < 1:
            raise ParameterError("arguments.widths", "be three positive numbers", list(widths))
        if min(shape[1:]) < 25:
            rule = f"be another for images of {shape[1]}x{shape[2]}: this one needs 25x25"
            raise ParameterError("name", rule, "fast_cnn")
        filters = _haar_filters(shape[0])
        first = nn.Conv2d(shape[0], len(filters), 2, bias=False)
        first.weight.data.copy_(filters)
        layers: list[nn.Module] = [first, nn.BatchNorm2d(len(filters)), nn.GELU()]
        fan_in = len(filters)
        for width in widths:
            layers += [_identity_convolution(fan_in, width), nn.MaxPool2d(2)]
            layers += [nn.BatchNorm2d(width), nn.GELU()]
            layers += [_identity_convolution(width, width), nn.BatchNorm2d(width), nn.GELU()]
            fan_in = width
        self.features = nn.Sequential(*layers, nn.AdaptiveMaxPool2d(1), nn.Flatten())
        self.head = nn.Linear(fan_in, num_classes, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        """Map images [batch, channels, height, width] to logits [batch, num_classes]."""
        logits: Tensor = self.head(self.features(images))
        return logits / 9  # As in the paper: at first the loss is near that of a uniform guess.


def _identity_convolution(fan_in: int, width: int) -> nn.Conv2d:
    """A 3x3 convolution whose first channels begin as the identity, the others at random."""
    convolution = nn.Conv2d(fan_in, width, 3, padding=1, bias=False)
    same = min(fan_in, width)
    nn.init.dirac_(convolution.weight.data[:same])
    return convolution


def _haar_filters(channels: int) -> Tensor:
    """Orthonormal filters of 2x2 patches, and their negatives: [8 * channels, channels, 2, 2]."""
    signs = torch.tensor([[1.0, 1, 1, 1], [1, 1, -1, -1], [1, -1, 1, -1], [1, -1, -1, 1]]) / 2
    across = torch.eye(channels) - 1 / channels
    colours = torch.linalg.qr(torch.cat([torch.ones(channels, 1), across[:, 1:]], dim=1)).Q.T
    filters = torch.einsum("kp,cd->kcdp", signs, colours).reshape(4 * channels, channels, 2, 2)
    return torch.cat([filters, -filters])
