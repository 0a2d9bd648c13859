"""Transforms that move pixels: shift, horizontal_flip, affine, resized_crop."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from kd_pipeline.errors import ParameterError
from kd_pipeline.views.boxes import NUM_CANDIDATES, first_valid, whole_sides
from kd_pipeline.views.sampling import (
    Drawn,
    Settings,
    reflected,
    sample_affine,
    unit_scale,
)
from kd_pipeline.views.stream import Stream


def draw_shift(stream: Stream, settings: Settings) -> dict[str, Tensor]:
    """Whole pixels `down` and `right`, every shift equally likely: a crop after padding."""
    most = settings["max_pixels"]
    # floor of a uniform draw over 2 most + 1 cells: every whole shift is equally likely.
    draws = {axis: stream.uniform(axis, -most, most + 1) for axis in ("down", "right")}
    return {axis: values.floor().to(torch.int64) for axis, values in draws.items()}


def render_shift(pixels: Tensor, drawn: Drawn, settings: Settings) -> Tensor:
    """Cut each image's window out of the padded image; any dtype.

    Raises:
        ParameterError: If an image is too small to be padded by its mirror image.
    """
    most, (height, width) = settings["max_pixels"], pixels.shape[-2:]
    if settings["padding"] == "reflect":
        if most >= min(height, width):
            rule = f"be below the image's side ({min(height, width)}) where it reflects"
            raise ParameterError("transforms.shift.max_pixels", rule, most)
        padded = pixels[:, :, reflected(height, most, pixels)]
        padded = padded[..., reflected(width, most, pixels)]
    else:
        padded = F.pad(pixels, (most, most, most, most))
    # Every window is a view; picking one per image copies whole rows, which is an order of
    # magnitude faster than gathering pixel by pixel.
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)
    batch = torch.arange(len(pixels), device=pixels.device)
    return windows[batch, :, most - drawn["down"], most - drawn["right"]]


def draw_flip(stream: Stream, settings: Settings) -> dict[str, Tensor]:
    """Whether each image is `flipped`."""
    return {"flipped": stream.happens("flipped", settings["probability"])}


def render_flip(pixels: Tensor, drawn: Drawn, _settings: Settings) -> Tensor:
    """Mirror left and right; any dtype."""
    return torch.where(drawn["flipped"].view(-1, 1, 1, 1), pixels.flip(-1), pixels)


def draw_affine(stream: Stream, settings: Settings) -> dict[str, Tensor]:
    """`degrees`, shifts `down` and `right` in pixels, `scale`, and `shear` in degrees.

    Torchvision's RandomAffine, but for shifts by parts of pixels. Without `min_scale` the scale is
    log-uniform in [1 / max_scale, max_scale], so that shrinking is as likely as growing.
    """
    degrees, shear = settings["max_degrees"], settings["max_shear_degrees"]
    shift = settings["max_shift_pixels"]
    drawn = {
        "degrees": stream.uniform("degrees", -degrees, degrees),
        "down": stream.uniform("down", -shift, shift),
        "right": stream.uniform("right", -shift, shift),
        "scale": _draw_scale(stream, settings["min_scale"], settings["max_scale"]),
    }
    return drawn | ({"shear": stream.uniform("shear", -shear, shear)} if shear else {})


def _draw_scale(stream: Stream, smallest: float | None, largest: float) -> Tensor:
    if smallest is not None:
        return stream.uniform("scale", smallest, largest)
    log_scale = math.log(largest)
    return stream.uniform("scale", -log_scale, log_scale).exp()


def render_affine(pixels: Tensor, drawn: Drawn, _settings: Settings) -> Tensor:
    """Shear along x, scale, rotate about the middle, then shift; bilinear, float32."""
    inverse = _inverse_affine(drawn)
    return sample_affine(unit_scale(pixels), inverse, mode="bilinear").clamp_(0, 1)


def _inverse_affine(drawn: Drawn) -> Tensor:
    """[batch, 2, 3], as `sample_affine` takes it."""
    radians, scale = torch.deg2rad(drawn["degrees"]), drawn["scale"]
    cosine, sine = torch.cos(radians), torch.sin(radians)
    shear = drawn.get("shear")
    slope = torch.zeros_like(sine) if shear is None else torch.tan(torch.deg2rad(shear))
    # The inverse of rotation @ [[1, -slope], [0, 1]] * scale, a product of determinant scale².
    xx, xy = (cosine - sine * slope) / scale, (sine + cosine * slope) / scale
    yx, yy = -sine / scale, cosine / scale
    right, down = drawn["right"], drawn["down"]
    row_x = torch.stack([xx, xy, -(xx * right + xy * down)], dim=-1)
    row_y = torch.stack([yx, yy, -(yx * right + yy * down)], dim=-1)
    return torch.stack([row_x, row_y], dim=1)


def draw_resized_crop(stream: Stream, settings: Settings) -> dict[str, Tensor]:
    """Ten candidate crops per image and one place, as fractions: no image size is needed.

    Torchvision's RandomResizedCrop tries ten times for a crop that fits; here all ten tries are
    drawn and the first that fits is taken at rendering, so that the law is the same.
    """
    low, high = math.log(settings["min_ratio"]), math.log(settings["max_ratio"])
    areas = (settings["min_scale"], settings["max_scale"])
    return {
        "area": stream.uniforms("area", NUM_CANDIDATES, *areas),
        "ratio": stream.uniforms("ratio", NUM_CANDIDATES, low, high).exp(),
        "down": stream.uniform("down"),
        "right": stream.uniform("right"),
    }


def crop_boxes(drawn: Drawn, settings: Settings, *, image_size: tuple[int, int]) -> Tensor:
    """Which part of each image is shown.

    Args:
        drawn: From `draw_resized_crop`.
        settings: For the ratios of the fallback: the largest crop in the middle that keeps them.
        image_size: Height and width, in pixels.

    Returns:
        int64 [4, batch]: top, left, height and width, in pixels.
    """
    height, width = image_size
    widths, heights = whole_sides(drawn["area"] * (height * width), drawn["ratio"])
    fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
    (heights, widths), any_fits = first_valid((heights, widths), fits)
    top = (drawn["down"] * (height - heights + 1)).floor().to(torch.int64)
    left = (drawn["right"] * (width - widths + 1)).floor().to(torch.int64)
    fallback = _middle_crop(height, width, settings["min_ratio"], settings["max_ratio"])
    boxes = zip((top, left, heights, widths), fallback, strict=True)
    return torch.stack([torch.where(any_fits, box, other) for box, other in boxes])


def _middle_crop(
    height: int, width: int, min_ratio: float, max_ratio: float
) -> tuple[int, int, int, int]:
    """The largest crop in the middle whose ratio of width to height is legal."""
    box_height = round(width / min_ratio) if width / height < min_ratio else height
    box_width = round(height * max_ratio) if width / height > max_ratio else width
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


def render_resized_crop(pixels: Tensor, drawn: Drawn, settings: Settings) -> Tensor:
    """Cut a part out and enlarge it to the image's own size; bilinear, float32."""
    images = unit_scale(pixels)
    height, width = images.shape[-2:]
    boxes = crop_boxes(drawn, settings, image_size=(height, width))
    top, left, box_height, box_width = boxes.unsqueeze(-1)
    grid_x = _stretched(width, left, box_width, images).unsqueeze(1).expand(-1, height, -1)
    grid_y = _stretched(height, top, box_height, images).unsqueeze(2).expand(-1, -1, width)
    grid = torch.stack([grid_x, grid_y], dim=-1)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False).clamp_(0, 1)


def _stretched(side: int, start: Tensor, length: Tensor, like: Tensor) -> Tensor:
    """Where a side's pixels come from, float32 [batch, side], in grid_sample's units.

    Kept within the crop: what lies beside it must not shine through at the border.
    """
    step = (length / side).float()
    positions = (torch.arange(side, device=like.device) + 0.5) * step - 0.5
    positions = torch.minimum(positions.clamp(min=0), (length - 1).float()) + start
    return (positions * 2 + 1) / side - 1
