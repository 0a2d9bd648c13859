"""One Pillow image to uint8 pixels: upright, of one colour mode, of one size."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

Colour = Literal["grey", "rgb"]

CHANNELS: dict[Colour, int] = {"grey": 1, "rgb": 3}
_SIXTEEN_BIT_MODES = frozenset({"I", "I;16", "I;16L", "I;16B", "I;16N"})
_EIGHT_BIT_MODES = frozenset({"1", "L", "P", "RGB", "RGBX", "YCbCr", "HSV", "CMYK"})
_ALPHA_MODES = frozenset({"LA", "La", "PA", "RGBA", "RGBa"})
GREY_MODES = _SIXTEEN_BIT_MODES | {"1", "L", "LA", "La"}
_PILLOW_MODE: dict[Colour, str] = {"grey": "L", "rgb": "RGB"}


def image_to_pixels(
    image: Image.Image, *, colour: Colour, image_size: int | None
) -> NDArray[np.uint8]:
    """Decode, turn upright, convert and resize one image.

    Transparent images are laid on white; 16-bit grey is scaled to 8 bits; of an animation the
    first frame is taken.

    Args:
        image: As Pillow opened it, not yet loaded.
        colour: What to convert to.
        image_size: Shortest side after resizing, the rest is cropped at the centre; None keeps
            the image's own size.

    Returns:
        uint8 [channels, height, width].

    Raises:
        ValueError: If the image has a mode with no agreed meaning as 8-bit colour.
        OSError: If the file is truncated or damaged.
    """
    if image_size is not None:
        # JPEG decodes at 1/2, 1/4 or 1/8 for much less; twice the target keeps it sharp.
        image.draft(None, (2 * image_size, 2 * image_size))
    ImageOps.exif_transpose(image, in_place=True)  # Loads it too.
    image = _convert(image, _PILLOW_MODE[colour])
    if image_size is not None:
        image = ImageOps.fit(image, (image_size, image_size), Image.Resampling.BILINEAR)
    pixels = np.asarray(image)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height once the image is turned upright, from its header alone."""
    width, height = image.size
    exchanged = image.getexif().get(ExifTags.Base.Orientation) in {5, 6, 7, 8}
    return (height, width) if exchanged else (width, height)


def _convert(image: Image.Image, mode: str) -> Image.Image:
    if image.mode in _SIXTEEN_BIT_MODES:
        image = _sixteen_to_eight_bits(image)
    elif image.mode in _ALPHA_MODES or "transparency" in image.info:
        image = _on_white(image)
    elif image.mode not in _EIGHT_BIT_MODES:
        raise ValueError(f"odd mode {image.mode}: no agreed meaning as 8-bit colour")
    return image if image.mode == mode else image.convert(mode)


def _sixteen_to_eight_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError(f"odd mode {image.mode}: values beyond 16 bits")
    # 65535 = 255 * 257, so this rounds to the nearest 8-bit value.
    return Image.fromarray(((values.astype(np.int64) + 128) // 257).astype(np.uint8))


def _on_white(image: Image.Image) -> Image.Image:
    opaque = Image.new("RGBA", image.size, "white")
    opaque.alpha_composite(image.convert("RGBA"))
    return opaque.convert("RGB")
