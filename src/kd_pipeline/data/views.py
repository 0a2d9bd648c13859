"""Augmented views as a pure function of (policy, example, view), rendered a batch at a time.

A view is drawn by counter-based hashing, so there is nothing to store: the teacher labels view v
of an example, and the student later sees the very same pixels, in any batch, order or process.
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kd_pipeline.errors import ParameterError
from kd_pipeline.randomness import derive_seed, uniform


@dataclass(frozen=True)
class ViewPolicy:
    """Which transforms, in which order, drawn from which seed."""

    seed: int = 0
    transforms: tuple[Mapping[str, Any], ...] = ()
    """Each has a `name` in `TRANSFORMS` and that transform's settings; none is the clean image."""

    def __post_init__(self) -> None:
        """Refuse an unknown transform."""
        for transform in self.transforms:
            if transform["name"] not in TRANSFORMS:
                rule = "be a known transform"
                raise ParameterError("transforms.name", rule, transform["name"], legal=TRANSFORMS)

    @cached_property
    def description(self) -> dict[str, Any]:
        """The policy as plain data, as the manifest of a cache holds it."""
        return {"seed": self.seed, "transforms": [dict(t) for t in self.transforms]}

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits over the description."""
        text = json.dumps(self.description, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def view_parameters(
    policy: ViewPolicy, example_ids: Tensor, view: int | Tensor
) -> dict[str, Tensor]:
    """Draw what each transform does to each example in one view.

    Args:
        policy: What to draw.
        example_ids: int64 [batch].
        view: The view's number, one for all or int64 [batch].

    Returns:
        Tensors [batch] named `<position of the transform>.<parameter>`; empty for clean views.
    """
    # The view enters through the id, so that views of one batch may differ by row.
    views = torch.as_tensor(view, dtype=torch.int64, device=example_ids.device)
    keys = example_ids * 32_771 + views
    parameters: dict[str, Tensor] = {}
    for position, transform in enumerate(policy.transforms):
        draw, _ = TRANSFORMS[transform["name"]]
        stream = _Stream(keys, policy.seed, position)
        for name, values in draw(stream, transform).items():
            parameters[f"{position}.{name}"] = values
    return parameters


def render_views(pixels: Tensor, parameters: Mapping[str, Tensor], policy: ViewPolicy) -> Tensor:
    """Apply drawn transforms to a batch of images, on whatever device they are.

    Args:
        pixels: uint8 [batch, channels, height, width].
        parameters: From `view_parameters`, for the same rows.
        policy: The same policy.

    Returns:
        Same shape: uint8, or float32 in [0, 1] from the first transform on that interpolates.
    """
    for position, transform in enumerate(policy.transforms):
        prefix = f"{position}."
        drawn = {k.removeprefix(prefix): v for k, v in parameters.items() if k.startswith(prefix)}
        _, render = TRANSFORMS[transform["name"]]
        pixels = render(pixels, drawn, transform)
    return pixels


@dataclass(frozen=True)
class _Stream:
    keys: Tensor
    seed: int
    position: int

    def uniform(self, name: str, low: float, high: float) -> Tensor:
        stream = derive_seed(self.seed, "views", self.position, name)
        return low + (high - low) * uniform(self.keys, stream=stream)


def _draw_shift(stream: _Stream, settings: Mapping[str, Any]) -> dict[str, Tensor]:
    most = settings["max_pixels"]
    # floor of a uniform draw over 2 most + 1 cells: every whole shift is equally likely.
    draws = {axis: stream.uniform(axis, -most, most + 1) for axis in ("down", "right")}
    return {axis: values.floor().to(torch.int64) for axis, values in draws.items()}


def _render_shift(
    pixels: Tensor, drawn: Mapping[str, Tensor], settings: Mapping[str, Any]
) -> Tensor:
    most, (height, width) = settings["max_pixels"], pixels.shape[-2:]
    if settings.get("padding", "zeros") == "reflect":
        if most >= min(height, width):
            rule = f"be below the image's side ({min(height, width)}) where it reflects"
            raise ParameterError("transforms.shift.max_pixels", rule, most)
        padded = pixels[:, :, _reflected(height, most, pixels)]
        padded = padded[..., _reflected(width, most, pixels)]
    else:
        padded = F.pad(pixels, (most, most, most, most))
    # Every window is a view; picking one per image copies whole rows, which is an order of
    # magnitude faster than gathering pixel by pixel.
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)
    batch = torch.arange(len(pixels), device=pixels.device)
    return windows[batch, :, most - drawn["down"], most - drawn["right"]]


def _reflected(side: int, margin: int, like: Tensor) -> Tensor:
    """Positions that pad a side by its mirror image, the edge not repeated."""
    positions = torch.arange(-margin, side + margin, device=like.device).abs()
    return torch.where(positions >= side, 2 * (side - 1) - positions, positions)


def _draw_flip(stream: _Stream, settings: Mapping[str, Any]) -> dict[str, Tensor]:
    return {"flipped": stream.uniform("flipped", 0.0, 1.0) < settings.get("probability", 0.5)}


def _render_flip(
    pixels: Tensor, drawn: Mapping[str, Tensor], _settings: Mapping[str, Any]
) -> Tensor:
    return torch.where(drawn["flipped"].view(-1, 1, 1, 1), pixels.flip(-1), pixels)


def _draw_affine(stream: _Stream, settings: Mapping[str, Any]) -> dict[str, Tensor]:
    degrees = settings.get("max_degrees", 0.0)
    shift = settings.get("max_shift_pixels", 0.0)
    log_scale = math.log(settings.get("max_scale", 1.0))
    return {
        "degrees": stream.uniform("degrees", -degrees, degrees),
        "down": stream.uniform("down", -shift, shift),
        "right": stream.uniform("right", -shift, shift),
        "scale": stream.uniform("scale", -log_scale, log_scale).exp(),
    }


def _render_affine(
    pixels: Tensor, drawn: Mapping[str, Tensor], _settings: Mapping[str, Any]
) -> Tensor:
    images = pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels
    height, width = images.shape[-2:]
    radians, scale = torch.deg2rad(drawn["degrees"]), drawn["scale"]
    cosine, sine = torch.cos(radians) / scale, torch.sin(radians) / scale
    # grid_sample asks where each output pixel comes from: the inverse map, in units where the
    # image spans [-1, 1]; the aspect ratio keeps rotations rigid on oblong images.
    right, down = 2 * drawn["right"] / width, 2 * drawn["down"] / height
    aspect = height / width
    row_x = torch.stack([cosine, sine * aspect, -(cosine * right + sine * aspect * down)], dim=-1)
    row_y = torch.stack([-sine / aspect, cosine, -(cosine * down - sine / aspect * right)], dim=-1)
    theta = torch.stack([row_x, row_y], dim=1).float()
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", align_corners=False).clamp_(0, 1)


_Draw = Callable[[_Stream, Mapping[str, Any]], dict[str, Tensor]]
_Render = Callable[[Tensor, Mapping[str, Tensor], Mapping[str, Any]], Tensor]

TRANSFORMS: dict[str, tuple[_Draw, _Render]] = {
    "shift": (_draw_shift, _render_shift),
    "horizontal_flip": (_draw_flip, _render_flip),
    "affine": (_draw_affine, _render_affine),
}
