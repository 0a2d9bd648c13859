"""One image to pixels: every mode by a value worked by hand, size, crop and orientation."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kd_pipeline.data.conversion import Colour, image_to_pixels, upright_size


def saved(image: Image.Image, kind: str = "PNG", **arguments: Any) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, kind, **arguments)
    buffer.seek(0)
    return Image.open(buffer)


def palette_with_transparency() -> Image.Image:
    image = Image.new("P", (2, 2), 0)
    image.putpalette([10, 20, 30, 200, 100, 50])
    return saved(image, transparency=0)


@pytest.mark.parametrize(
    ("image", "colour", "expected"),
    [
        (saved(Image.new("L", (2, 2), 77)), "grey", [77]),
        (saved(Image.new("L", (2, 2), 77)), "rgb", [77, 77, 77]),
        (saved(Image.new("1", (2, 2), 1)), "grey", [255]),
        (saved(Image.new("RGB", (2, 2), (1, 2, 3))), "rgb", [1, 2, 3]),
        # Rec. 601 luma: 0.299 * 100 + 0.587 * 50 + 0.114 * 200 = 82.05
        (saved(Image.new("RGB", (2, 2), (100, 50, 200))), "grey", [82]),
        (saved(Image.new("RGBA", (2, 2), (0, 0, 0, 0))), "rgb", [255, 255, 255]),
        (saved(Image.new("RGBA", (2, 2), (9, 8, 7, 255))), "rgb", [9, 8, 7]),
        (saved(Image.new("LA", (2, 2), (0, 0))), "grey", [255]),
        (palette_with_transparency(), "rgb", [255, 255, 255]),
        (saved(Image.new("CMYK", (2, 2), (0, 0, 0, 0)), "TIFF"), "rgb", [255, 255, 255]),
        # 16 bits: 32896 = 128 * 257
        (saved(Image.fromarray(np.full((2, 2), 32896, np.uint16))), "grey", [128]),
        (saved(Image.fromarray(np.full((2, 2), 65535, np.uint16))), "rgb", [255, 255, 255]),
    ],
)
def test_modes(image: Image.Image, colour: Colour, expected: list[int]) -> None:
    pixels = image_to_pixels(image, colour=colour, image_size=None)
    assert pixels.dtype == np.uint8
    assert pixels.shape == (len(expected), 2, 2)
    assert pixels[:, 1, 1].tolist() == expected


def test_a_mode_without_meaning_is_refused() -> None:
    image = saved(Image.fromarray(np.full((2, 2), 0.5, np.float32)), "TIFF")
    with pytest.raises(ValueError, match="odd mode F"):
        image_to_pixels(image, colour="grey", image_size=None)


def test_shortest_side_is_resized_and_the_middle_kept() -> None:
    wide = Image.fromarray(np.random.default_rng(0).integers(0, 256, (4, 12), dtype=np.uint8))
    in_two_steps = wide.resize((6, 2), Image.Resampling.BILINEAR).crop((2, 0, 4, 2))
    pixels = image_to_pixels(wide, colour="grey", image_size=2)
    np.testing.assert_array_equal(pixels[0], np.asarray(in_two_steps))


def test_a_large_jpeg_comes_out_as_if_decoded_in_full() -> None:
    ramp = np.linspace(0, 255, 512).astype(np.uint8)
    image = Image.fromarray(np.broadcast_to(ramp, (512, 512)).copy())
    drafted = image_to_pixels(saved(image, "JPEG", quality=95), colour="grey", image_size=16)
    full = image_to_pixels(image, colour="grey", image_size=16)
    assert np.abs(drafted.astype(int) - full.astype(int)).max() <= 2


def test_exif_orientation_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to view
    stored = np.zeros((8, 16), np.uint8)
    stored[:, :8] = 255
    image = saved(Image.fromarray(stored), "JPEG", exif=exif, quality=100)
    assert upright_size(image) == (8, 16)
    pixels = image_to_pixels(image, colour="grey", image_size=None)
    assert pixels.shape == (1, 16, 8)
    assert pixels[0, 2, 4] > 250
    assert pixels[0, 13, 4] < 5


def test_an_exif_orientation_without_meaning_is_no_turn() -> None:
    exif = Image.Exif()
    exif[0x0112] = 9
    image = saved(Image.new("L", (16, 8)), "JPEG", exif=exif)
    assert upright_size(image) == (16, 8)
    assert image_to_pixels(image, colour="grey", image_size=None).shape == (1, 8, 16)
