"""One image to the served student's input: as in training, and what is refused."""

import ast
import base64
import io
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kd_pipeline.data.conversion import Colour, image_to_pixels
from kd_pipeline.tracking import fluent

RNG = np.random.default_rng(0)
PHOTO = Image.fromarray(RNG.integers(0, 256, (60, 90, 3), dtype=np.uint8))
SIXTEEN_BIT = Image.fromarray(RNG.integers(0, 65536, (20, 20), dtype=np.uint16))
GREY, RGB = (1, 8, 8), (3, 8, 8)


@pytest.fixture(scope="module")
def model() -> ModuleType:
    with fluent.without_warnings():
        from kd_pipeline.tracking import serving_model
    return serving_model


def content(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    image.save(file := io.BytesIO(), kind, **options)
    return file.getvalue()


def text(file: bytes) -> str:
    return base64.b64encode(file).decode()


def upside_down() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6  # Orientation: to be turned by 90 degrees.
    return exif


@pytest.mark.parametrize("shape", [GREY, RGB], ids=["grey", "rgb"])
@pytest.mark.parametrize(
    "file",
    [
        content(PHOTO),
        content(PHOTO, "JPEG"),
        content(PHOTO.convert("L"), "JPEG"),
        content(PHOTO.convert("CMYK"), "JPEG"),
        content(PHOTO.convert("RGBA").rotate(30)),
        content(PHOTO.convert("P"), transparency=3),
        content(PHOTO.resize((8, 8))),
        content(PHOTO.resize((800, 800)), "JPEG", exif=upside_down()),
        content(SIXTEEN_BIT),
    ],
    ids=["png", "jpeg", "grey", "cmyk", "alpha", "palette", "same-size", "large-turned", "16-bit"],
)
def test_a_file_becomes_the_pixels_that_ingest_makes_of_it(
    model: ModuleType, file: bytes, shape: tuple[int, int, int]
) -> None:
    colour: Colour = "grey" if shape == GREY else "rgb"
    with Image.open(io.BytesIO(file)) as image:
        expected = image_to_pixels(image, colour=colour, image_size=8)
    got = model.to_pixels(text(file), shape)
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(got, expected)


def test_an_array_is_the_pixels_themselves(model: ModuleType) -> None:
    pixels = RNG.integers(0, 256, RGB, dtype=np.uint8)
    for value in (pixels, pixels.tolist(), pixels.astype(np.int64), list(pixels)):
        got = model.to_pixels(value, RGB)
        assert got.dtype == np.uint8
        np.testing.assert_array_equal(got, pixels)


ZEROS = np.zeros(RGB, dtype=np.int64)
REFUSED = {
    "number": (3, "be a PNG or JPEG file in base64, or an array of pixels, got int"),
    "missing": (float("nan"), "or an array of pixels, got float"),
    "other shape": (ZEROS[:, :4], r"be an array \[channels, .* of \[3, 8, 8\], got \[3, 4, 8\]"),
    "channels last": (ZEROS.T[:, :, :1], r"of \[3, 8, 8\], got \[8, 8, 1\]"),
    "ragged": ([[1], [1, 2]], "got lists of different lengths or depths"),
    "above 255": (ZEROS + 256, "hold whole numbers from 0 to 255, got 256 to 256"),
    "negative": (ZEROS - 1, "got -1 to -1"),
    "scaled": (ZEROS / 255, "hold whole numbers from 0 to 255, got 0.0 to 0.0"),
    "texts": (np.full(RGB, "1").tolist(), "hold whole numbers from 0 to 255, got values of type"),
    "no base64": ("cat.png", "be base64, got 'cat.png' and so on"),
    "empty": ("", "be a PNG or JPEG file, got 0 other bytes"),
    "gif": (text(content(PHOTO, "GIF")), r"be a PNG or JPEG file, got \d+ other bytes"),
    "truncated PNG": (text(content(PHOTO)[:-500]), "be a whole PNG or JPEG file, got a damaged"),
    "truncated JPEG": (text(content(PHOTO, "JPEG")[:-500]), "be a whole PNG or JPEG file, got a"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_image_is_refused_by_what_it_must_be(model: ModuleType, name: str) -> None:
    value, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        model.to_pixels(value, RGB)


def test_large_files_and_images_are_refused_before_they_are_decoded(
    model: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = content(PHOTO)  # 90 x 60 pixels.
    monkeypatch.setattr(model, "MAX_PIXELS", 5400)
    monkeypatch.setattr(model, "MAX_BYTES", len(file))
    assert model.to_pixels(text(file), RGB).shape == RGB
    monkeypatch.setattr(model, "MAX_PIXELS", 5399)
    with pytest.raises(ValueError, match="have at most 5399 pixels, got 90 x 60"):
        model.to_pixels(text(file[:200]), RGB)  # Were it decoded, it would be a damaged one.
    monkeypatch.setattr(model, "MAX_BYTES", len(file) - 3)
    with pytest.raises(ValueError, match=f"be a file of at most {len(file) - 3} bytes, got"):
        model.to_pixels(text(file), RGB)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_damaged_files_give_pixels_or_a_refusal_and_no_other_error(
    model: ModuleType, kind: str
) -> None:
    file = content(PHOTO.resize((24, 16)), kind)
    num_refused = 0
    for position in range(0, len(file), 7):
        damaged = bytearray(file)
        damaged[position] ^= 0xFF
        try:
            assert model.to_pixels(text(bytes(damaged)), RGB).shape == RGB
        except ValueError as error:
            num_refused += 1
            assert "PNG or JPEG file" in str(error) or "pixels" in str(error)
    assert num_refused > 0


def test_files_for_a_model_of_other_channels_are_refused(model: ModuleType) -> None:
    with pytest.raises(ValueError, match="be an array, because the model has 4 channels"):
        model.to_pixels(text(content(PHOTO)), (4, 8, 8))


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield str(node.module).partition(".")[0]


def test_it_imports_only_what_is_pinned_with_it(model: ModuleType) -> None:
    from kd_pipeline.tracking.student_model import _PACKAGES

    assert model.__file__ is not None
    names = set(imported(ast.parse(Path(model.__file__).read_text("utf-8"))))
    assert {n.replace("PIL", "pillow") for n in names - sys.stdlib_module_names} == set(_PACKAGES)
