"""The served student as a "model from code" of MLflow: its registry keeps this file and runs it.

It runs where this project is not installed, so it imports neither the project nor torch.
"""

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc.model import PythonModel, PythonModelContext
from numpy.typing import NDArray
from PIL import Image, ImageOps

MAX_BYTES = 20_000_000
"""Of one image file."""
MAX_PIXELS = 50_000_000
"""Of one image, so that a small file cannot fill the memory; cameras of today have fewer."""
_BATCH_SIZE = 64  # Bounds the memory for activations.
_MODES = {1: "L", 3: "RGB"}
_SIXTEEN_BIT_MODES = {"I", "I;16", "I;16L", "I;16B", "I;16N"}
_ALPHA_MODES = {"LA", "La", "PA", "RGBA", "RGBa"}


class ServedStudent(PythonModel):
    """Answers images with class names and probabilities."""

    def load_context(self, context: PythonModelContext) -> None:
        """Open the ONNX file and the card that lie in the logged model."""
        card = json.loads(Path(context.artifacts["card"]).read_text("utf-8"))
        self.class_names: list[str] = card["class_names"]
        channels, height, width = card["input_shape"]
        self.input_shape: tuple[int, int, int] = (channels, height, width)
        providers = ["CPUExecutionProvider"]
        self.session = onnxruntime.InferenceSession(context.artifacts["onnx"], providers=providers)

    def predict(
        self,
        context: PythonModelContext,  # noqa: ARG002
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,  # noqa: ARG002
    ) -> pd.DataFrame:
        """Classify images.

        Args:
            context: Not used; MLflow hands it in.
            model_input: One image per row in the column `image`: a PNG or JPEG file in base64, or
                uint8 pixels as (nested lists of) an array of the model's input shape.
            params: Not used; MLflow hands them in.

        Returns:
            One row per image: `class_name`, its `probability`, and `probabilities` by class name.

        Raises:
            MlflowException: With the row and what is wrong with it; the server answers status 400.
        """
        images = list(self._images(model_input["image"]))
        starts = range(0, len(images), _BATCH_SIZE)
        batches = [self._probabilities(images[s : s + _BATCH_SIZE]) for s in starts]
        rows = [row for batch in batches for row in batch]
        best = [int(row.argmax()) for row in rows]
        return pd.DataFrame(
            {
                "class_name": [self.class_names[one] for one in best],
                "probability": [float(row[one]) for row, one in zip(rows, best, strict=True)],
                "probabilities": [
                    dict(zip(self.class_names, row.tolist(), strict=True)) for row in rows
                ],
            }
        )

    def _images(self, values: pd.Series) -> Iterator[NDArray[np.uint8]]:
        for row, value in enumerate(values):
            try:
                yield to_pixels(value, self.input_shape)
            except ValueError as error:
                message = f"`image` of row {row} must {error}"
                raise MlflowException(message, INVALID_PARAMETER_VALUE) from error

    def _probabilities(self, images: list[NDArray[np.uint8]]) -> NDArray[np.float64]:
        (logits,) = self.session.run(["logits"], {"pixels": np.stack(images)})
        powers = np.exp(np.float64(logits) - np.max(logits, axis=1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def to_pixels(value: object, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Make one image the model's input.

    Args:
        value: A PNG or JPEG file in base64, or pixels as an array or nested lists.
        shape: Channels, height and width of the model's input.

    Returns:
        uint8 [channels, height, width].

    Raises:
        ValueError: With what the value must be, got something else.
    """
    if isinstance(value, str):
        return _convert(_decode(value), shape)
    if isinstance(value, list | np.ndarray):
        return _check_array(value, shape)
    kind = type(value).__name__
    raise ValueError(f"be a PNG or JPEG file in base64, or an array of pixels, got {kind}")


def _check_array(value: Any, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    rule = f"be an array [channels, height, width] of {list(shape)}"
    try:
        pixels = np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{rule}, got lists of different lengths or depths") from error
    if pixels.shape != shape:
        raise ValueError(f"{rule}, got {list(pixels.shape)}")
    if pixels.dtype.kind not in "iu" or pixels.min() < 0 or pixels.max() > 255:
        raise ValueError(f"hold whole numbers from 0 to 255, got {_range_of(pixels)}")
    return pixels.astype(np.uint8)


def _range_of(pixels: NDArray[Any]) -> str:
    is_number = pixels.dtype.kind in "iuf"
    return f"{pixels.min()} to {pixels.max()}" if is_number else f"values of type {pixels.dtype}"


def _decode(text: str) -> Image.Image:
    """Open a file in base64; nothing but its header is decoded yet."""
    # Base64 has four characters for three bytes.
    if len(text) > (MAX_BYTES + 2) // 3 * 4:
        raise ValueError(f"be a file of at most {MAX_BYTES} bytes, got {len(text) // 4 * 3}")
    try:
        content = base64.b64decode(text, validate=True)
    except ValueError as error:
        raise ValueError(f"be base64, got {text[:20]!r} and so on ({error})") from error
    try:
        image = Image.open(io.BytesIO(content), formats=["PNG", "JPEG"])
    except Image.DecompressionBombError as error:
        raise ValueError(f"have at most {MAX_PIXELS} pixels ({error})") from error
    except Exception as error:  # Pillow's readers raise many kinds.
        raise ValueError(f"be a PNG or JPEG file, got {len(content)} other bytes") from error
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"have at most {MAX_PIXELS} pixels, got {image.width} x {image.height}")
    return image


def _convert(image: Image.Image, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Turn upright, convert and resize as `kd_pipeline.data.conversion` does for the training set.

    The image is cropped at its centre to the input's proportions, then resized, bilinear with
    antialiasing.
    """
    channels, height, width = shape
    if channels not in _MODES:
        raise ValueError(f"be an array, because the model has {channels} channels, got a file")
    side = 2 * max(height, width)
    try:
        image.draft(None, (side, side))
        ImageOps.exif_transpose(image, in_place=True)  # Loads it too.
    except Exception as error:  # As above.
        raise ValueError(f"be a whole PNG or JPEG file, got a damaged one ({error})") from error
    image = _to_eight_bits(image).convert(_MODES[channels])
    pixels = np.asarray(ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR))
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Scale 16-bit grey to 8 bits; lay transparent images on white."""
    if image.mode in _SIXTEEN_BIT_MODES:
        # 65535 = 255 * 257, so this rounds to the nearest 8-bit value.
        values = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
        return Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if image.mode in _ALPHA_MODES or "transparency" in image.info:
        opaque = Image.new("RGBA", image.size, "white")
        opaque.alpha_composite(image.convert("RGBA"))
        return opaque.convert("RGB")
    return image


set_model(ServedStudent())
