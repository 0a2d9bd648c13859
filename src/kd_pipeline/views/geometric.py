"""Transforms that move pixels: shift, horizontal_flip, affine, resized_crop."""

import math
from typing import Annotated, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from kd_pipeline.config import Fraction, ImageSide, NonNegativeFloat, PositiveFloat
from kd_pipeline.errors import ParameterError
from kd_pipeline.views.boxes import draw_candidates, first_valid, placed, whole_sides
from kd_pipeline.views.record import Drawn, Table, Transform
from kd_pipeline.views.sampling import pad_reflected, sample_affine, unit_scale
from kd_pipeline.views.settings import AreaFraction, TransformParams
from kd_pipeline.views.stream import Stream


class Shift(TransformParams):
    """Shift by whole pixels: RandomCrop with padding."""

    name: Literal["shift"]
    max_pixels: ImageSide
    padding: Literal["zeros", "reflect"] = "zeros"


class HorizontalFlip(TransformParams):
    """Mirror left and right: RandomHorizontalFlip."""

    name: Literal["horizontal_flip"]
    probability: Fraction = 0.5


class Affine(TransformParams):
    """Rotate, scale, shear and shift, zeros outside: RandomAffine, which shifts by whole pixels."""

    name: Literal["affine"]
    max_degrees: Annotated[float, Field(ge=0.0, le=180.0)] = 0.0
    max_shift_pixels: NonNegativeFloat = 0.0
    min_scale: PositiveFloat | None = None
    """Given, the scale is uniform in [min_scale, max_scale], as torchvision's."""
    max_scale: PositiveFloat = 1.0
    """Without `min_scale` the scale is log-uniform in [1 / max_scale, max_scale], so that
    shrinking is as likely as growing."""
    max_shear_degrees: Annotated[float, Field(ge=0.0, lt=90.0)] = 0.0
    """Along x."""

    @model_validator(mode="after")
    def _largest_scale_grows(self) -> Self:
        if self.min_scale is None and self.max_scale < 1:
            raise ValueError(
                f"`max_scale` must be at least 1 without `min_scale`, got {self.max_scale}"
            )
        return self


class ResizedCrop(TransformParams):
    """Cut a part out and enlarge it to the image's own size: RandomResizedCrop."""

    name: Literal["resized_crop"]
    min_scale: AreaFraction = 0.08
    max_scale: AreaFraction = 1.0
    """Fraction of the image's area."""
    min_ratio: PositiveFloat = 3 / 4
    max_ratio: PositiveFloat = 4 / 3
    """Width by height, drawn log-uniformly."""


def draw_shift(stream: Stream, settings: Shift) -> Drawn:
    """Draw whole pixels `down` and `right`, every shift equally likely."""
    most = settings.max_pixels
    # floor of a uniform draw over 2 most + 1 cells: every whole shift is equally likely.
    draws = {axis: stream.uniform(axis, -most, most + 1) for axis in ("down", "right")}
    return {axis: values.floor().to(torch.int64) for axis, values in draws.items()}


def render_shift(pixels: Tensor, drawn: Drawn, settings: Shift) -> Tensor:
    """Cut each image's window out of the padded image.

    Raises:
        ParameterError: If an image is too small to be padded by its mirror image.
    """
    most, (height, width) = settings.max_pixels, pixels.shape[-2:]
    if settings.padding == "reflect":
        if most >= min(height, width):
            rule = f"be below the image's side ({min(height, width)}) where it reflects"
            raise ParameterError("transforms.shift.max_pixels", rule, most)
        padded = pad_reflected(pad_reflected(pixels, 2, most), 3, most)
    else:
        padded = F.pad(pixels, (most, most, most, most))
    # Every row of a window is a run of values in memory. Selected among all such runs, it is copied
    # whole: four times faster than indexing windows.
    num_rows, length = padded.shape[2:]
    first_rows = torch.arange(len(pixels) * pixels.shape[1], device=pixels.device) * num_rows
    first_rows = first_rows.view(*pixels.shape[:2], 1) + (most - drawn["down"]).view(-1, 1, 1)
    rows = first_rows + torch.arange(height, device=pixels.device)
    starts = rows * length + (most - drawn["right"]).view(-1, 1, 1)
    runs = padded.flatten().unfold(0, width, 1)
    return runs.index_select(0, starts.flatten()).view(pixels.shape)


def draw_flip(stream: Stream, settings: HorizontalFlip) -> Drawn:
    """Draw whether each image is `flipped`."""
    return {"flipped": stream.happens("flipped", settings.probability)}


def render_flip(pixels: Tensor, drawn: Drawn, _settings: HorizontalFlip) -> Tensor:
    """Mirror left and right."""
    mirrored, flipped = pixels.flip(-1), drawn["flipped"]
    if pixels.dtype != torch.uint8:
        return torch.where(flipped.view(-1, 1, 1, 1), mirrored, pixels)
    # Bytes, which torch.where takes one by one, are copied by the image: four times faster.
    at = torch.arange(len(pixels), device=pixels.device) + len(pixels) * flipped
    return torch.cat([pixels, mirrored]).index_select(0, at)


def draw_affine(stream: Stream, settings: Affine) -> Drawn:
    """Draw `degrees`, shifts `down` and `right` in pixels, `scale`, and `shear` in degrees."""
    most = {
        "degrees": settings.max_degrees,
        "down": settings.max_shift_pixels,
        "right": settings.max_shift_pixels,
        "shear": settings.max_shear_degrees,
    }
    drawn = {name: stream.uniform(name, -limit, limit) for name, limit in most.items()}
    if settings.min_scale is not None:
        scale = stream.uniform("scale", settings.min_scale, settings.max_scale)
    else:
        log_scale = math.log(settings.max_scale)
        scale = stream.uniform("scale", -log_scale, log_scale).exp()
    return {**drawn, "scale": scale}


def render_affine(pixels: Tensor, drawn: Drawn, _settings: Affine) -> Tensor:
    """Shear along x, scale, rotate about the middle, then shift; bilinear, float32."""
    inverse = _inverse_affine(drawn)
    return sample_affine(unit_scale(pixels), inverse, mode="bilinear").clamp_(max=1)


def _inverse_affine(drawn: Drawn) -> Tensor:
    """[batch, 2, 3], as `sample_affine` takes it."""
    radians, scale = torch.deg2rad(drawn["degrees"]), drawn["scale"]
    cosine, sine = torch.cos(radians), torch.sin(radians)
    slope = torch.tan(torch.deg2rad(drawn["shear"]))
    # The inverse of rotation @ [[1, -slope], [0, 1]] * scale, a product of determinant scale².
    xx, xy = (cosine - sine * slope) / scale, (sine + cosine * slope) / scale
    yx, yy = -sine / scale, cosine / scale
    right, down = drawn["right"], drawn["down"]
    row_x = torch.stack([xx, xy, -(xx * right + xy * down)], dim=-1)
    row_y = torch.stack([yx, yy, -(yx * right + yy * down)], dim=-1)
    return torch.stack([row_x, row_y], dim=1)


def draw_resized_crop(stream: Stream, settings: ResizedCrop) -> Drawn:
    """Draw ten candidate crops per image and one place."""
    return draw_candidates(
        stream,
        areas=(settings.min_scale, settings.max_scale),
        ratios=(settings.min_ratio, settings.max_ratio),
    )


def crop_boxes(drawn: Drawn, settings: ResizedCrop, *, image_size: tuple[int, int]) -> Tensor:
    """Top, left, height and width of each image's crop, int64 [4, batch], in pixels.

    Where no candidate fits it is the largest crop in the middle of a legal ratio, as torchvision's.
    """
    height, width = image_size
    widths, heights = whole_sides(drawn["area"] * (height * width), drawn["ratio"])
    fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
    (heights, widths), any_fits = first_valid((heights, widths), fits)
    top, left = placed(heights, widths, drawn, image_size)
    largest_height = min(height, round(width / settings.min_ratio))
    largest_width = min(width, round(height * settings.max_ratio))
    drawn_or_largest = (
        (top, (height - largest_height) // 2),
        (left, (width - largest_width) // 2),
        (heights, largest_height),
        (widths, largest_width),
    )
    return torch.stack([torch.where(any_fits, *pair) for pair in drawn_or_largest])


def render_resized_crop(pixels: Tensor, drawn: Drawn, settings: ResizedCrop) -> Tensor:
    """Cut a part out and enlarge it to the image's own size; bilinear, float32."""
    images = unit_scale(pixels)
    height, width = images.shape[-2:]
    boxes = crop_boxes(drawn, settings, image_size=(height, width))
    top, left, box_height, box_width = boxes.unsqueeze(-1)
    grid_x = _stretched(width, left, box_width, images).unsqueeze(1).expand(-1, height, -1)
    grid_y = _stretched(height, top, box_height, images).unsqueeze(2).expand(-1, -1, width)
    grid = torch.stack([grid_x, grid_y], dim=-1)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False).clamp_(max=1)


def _stretched(side: int, start: Tensor, length: Tensor, like: Tensor) -> Tensor:
    """Sources of a side's pixels within the crop, float32 [batch, side], as grid_sample's."""
    step = (length / side).float()
    positions = (torch.arange(side, device=like.device) + 0.5) * step - 0.5
    positions = torch.minimum(positions.clamp(min=0), (length - 1).float()) + start
    return (positions * 2 + 1) / side - 1


TRANSFORMS: Table = {
    "shift": Transform(Shift, draw_shift, render_shift),
    "resized_crop": Transform(ResizedCrop, draw_resized_crop, render_resized_crop),
    "horizontal_flip": Transform(HorizontalFlip, draw_flip, render_flip),
    "affine": Transform(Affine, draw_affine, render_affine),
}
