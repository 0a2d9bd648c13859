"""Operations on the tones of images, as torchvision's functional ones, with a factor per image.

Each takes images [batch, channels, height, width] and keeps their dtype: float32 in [0, 1], or
uint8, computed in float32 and truncated to whole levels, as in torchvision.
"""

import torch
from torch import Tensor

from kd_pipeline.errors import DataError
from kd_pipeline.views.sampling import per_image

_RED, _GREEN, _BLUE = 0.2989, 0.587, 0.114
_FINE = 2**20
_HUGE = 1e30


def luminance(images: Tensor) -> Tensor:
    """Luminance of each pixel, float32 [batch, 1, height, width].

    Raises:
        DataError: If the images have neither one channel nor three.
    """
    channels = images.shape[1]
    if channels == 1:
        return images.float()
    if channels != 3:
        raise DataError(f"colours need images of 1 or 3 channels, got {channels}")
    red, green, blue = images.unbind(dim=1)
    grey = red * _RED
    grey += green * _GREEN
    grey += blue * _BLUE
    return grey.unsqueeze(1).floor() if images.dtype == torch.uint8 else grey.unsqueeze(1)


def brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with black: factor 0 gives black, 1 the image; float [batch]."""
    return _like(images * per_image(factor), images)


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with the image's mean luminance."""
    grey, count = luminance(images), images.shape[-2] * images.shape[-1]
    # Summed as integers: a sum of floats depends on its order, which a batch's size may change.
    total = (grey * _FINE).round_().to(torch.int64).sum(dim=(1, 2, 3))
    return _blend(images, per_image(total / (count * _FINE)), factor)


def saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Blend each pixel with its luminance; grey images stay as they are."""
    return images if images.shape[1] == 1 else _blend(images, luminance(images), factor)


def hue(images: Tensor, turn: Tensor) -> Tensor:
    """Turn the colour wheel by a fraction of the circle, in [-0.5, 0.5]; grey images stay.

    Args:
        images: float32 in [0, 1].
        turn: float [batch].
    """
    if images.shape[1] == 1:
        return images
    red, green, blue = images.unbind(dim=1)
    highest = torch.maximum(torch.maximum(red, green), blue)
    lowest = torch.minimum(torch.minimum(red, green), blue)
    spread = highest - lowest
    sixths = _hue_in_sixths(images, highest, spread).add_(6 * turn.float().view(-1, 1, 1))
    sixths -= (sixths / 6).floor_().mul_(6)
    # Back from HSV: the part of the spread in each channel is a trapezoid over the circle.
    parts = (
        (sixths - 3).abs_().sub_(1),
        (sixths - 2).abs_().neg_().add_(2),
        (sixths - 4).abs_().neg_().add_(2),
    )
    turned = [part.clamp_(0, 1).mul_(spread).add_(lowest) for part in parts]
    return torch.stack(turned, dim=1)


def _hue_in_sixths(images: Tensor, highest: Tensor, spread: Tensor) -> Tensor:
    """The place on the colour wheel times 6: 0 is red, 2 green, 4 blue; 0 where there is none.

    Masks are made by arithmetic: `torch.where` is slow on the CPU where its mask is ragged.
    """
    red, green, blue = images.unbind(dim=1)
    not_red = ((highest - red) * _HUGE).clamp_(max=1)
    not_green = ((highest - green) * _HUGE).clamp_(max=1)
    near_red, near_green = green - blue, spread * 2 + blue - red
    near_blue = (spread * 4).add_(red).sub_(green)
    near_other = near_blue.sub_(near_green).mul_(not_green).add_(near_green)
    place = near_other.sub_(near_red).mul_(not_red).add_(near_red)
    return place.div_(spread.clamp(min=1 / _HUGE))


def sharpness(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with the image smoothed by the kernel [1 1 1; 1 5 1; 1 1 1] / 13; borders stay."""
    exact = images.float()
    smooth = _sum_of_nine(exact)
    centre = exact[..., 1:-1, 1:-1]
    smooth = (smooth + 4 * centre) / 13
    if images.dtype == torch.uint8:
        smooth = smooth.round_()
    sharpened = exact.clone()
    sharpened[..., 1:-1, 1:-1] += (smooth - centre) * (1 - per_image(factor))
    return _like(sharpened, images)


def _sum_of_nine(images: Tensor) -> Tensor:
    rows = images[..., :-2, :] + images[..., 1:-1, :] + images[..., 2:, :]
    return rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]


def posterize(pixels: Tensor, bits: Tensor) -> Tensor:
    """Keep the highest bits of uint8 pixels; int64 [batch], 0 to 8."""
    mask = 256 - 2 ** (8 - bits)
    return pixels & mask.to(torch.uint8).view(-1, 1, 1, 1)


def solarize(pixels: Tensor, threshold: Tensor) -> Tensor:
    """Invert the uint8 pixels at or above each image's threshold, [batch], in [0, 255]."""
    bright = (pixels >= per_image(threshold)).to(torch.uint8)
    # 255 - level has all bits inverted; `torch.where` is slow where its mask is ragged.
    return pixels ^ bright.mul_(255)


def autocontrast(pixels: Tensor) -> Tensor:
    """Stretch each channel of uint8 pixels to the whole range; constant channels stay."""
    exact = pixels.float()
    lowest, highest = (f(dim=(-2, -1), keepdim=True) for f in (exact.amin, exact.amax))
    even = lowest == highest
    step = torch.where(even, 1.0, (highest - lowest) * (1 / 255))
    return _like((exact - torch.where(even, 0.0, lowest)) / step, pixels)


def equalize(pixels: Tensor) -> Tensor:
    """Equalize the histogram of each channel of uint8 pixels."""
    flat = pixels.flatten(2).to(torch.int64)
    counts = flat.new_zeros((*flat.shape[:2], 256)).scatter_add_(-1, flat, torch.ones_like(flat))
    upto = counts.cumsum(dim=-1)
    brightest = pixels.flatten(2).amax(dim=-1, keepdim=True).to(torch.int64)
    step = (flat.shape[-1] - counts.gather(-1, brightest)) // 255
    # A level is mapped by the number of pixels darker than it.
    table = (upto - counts + step // 2) // step.clamp(min=1)
    spread = table.clamp_(max=255).to(torch.uint8).gather(-1, flat).view_as(pixels)
    return torch.where(step[..., None] > 0, spread, pixels)


def _blend(images: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    weight = per_image(factor)
    return _like((images * weight).add_(other * (1 - weight)), images)


def _like(values: Tensor, images: Tensor) -> Tensor:
    if images.dtype == torch.uint8:
        return values.clamp_(0, 255).to(torch.uint8)
    return values.clamp_(0, 1)
