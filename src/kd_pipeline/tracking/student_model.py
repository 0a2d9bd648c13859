"""An exported student in MLflow's format, to be served without this project and without torch."""

import base64
import importlib.metadata
import io
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from PIL import Image

from kd_pipeline.tracking.fluent import fluent_uri, without_warnings
from kd_pipeline.tracking.sender import Sender
from kd_pipeline.tracking.store import Store, open_client

if TYPE_CHECKING:
    from mlflow.models import ModelSignature

PREDICTIONS = "artifacts/predictions.parquet"
"""Inside a logged model; MLflow gives the first part its name."""

_CODE = Path(__file__).with_name("serving_model.py")
_PACKAGES = ("mlflow", "numpy", "onnxruntime", "pandas", "pillow")  # What that file imports.


def log_student(
    store: Store, *, onnx_file: Path, card: Mapping[str, Any], predictions: pd.DataFrame
) -> str:
    """Log an exported student, its card and its predictions as one model of MLflow.

    Returns:
        The model's id.
    """
    client, experiment_id = open_client(store), Sender(store).experiment_id
    with without_warnings():
        import mlflow.pyfunc
        from mlflow.models import Model

    model_id: str = client.create_logged_model(experiment_id, name="student").model_id
    with fluent_uri(store.uri), without_warnings(), tempfile.TemporaryDirectory() as folder:
        files = {"onnx": onnx_file, "card": Path(folder, "card.json")}
        files["predictions"] = Path(folder, Path(PREDICTIONS).name)
        files["card"].write_text(json.dumps(dict(card), indent=2), "utf-8")
        predictions.to_parquet(files["predictions"], index=False)
        Model.log(
            artifact_path=None,
            name="student",
            flavor=mlflow.pyfunc,
            python_model=str(_CODE),
            artifacts={name: str(file) for name, file in files.items()},
            signature=_signature(),
            input_example=_example(tuple(card["input_shape"])),
            # MLflow would take seconds to infer them, and find those of this process.
            pip_requirements=[f"{p}=={importlib.metadata.version(p)}" for p in _PACKAGES],
            model_id=model_id,
        )
    return model_id


def _signature() -> "ModelSignature":
    """One required column for files and arrays: MLflow then names the column that is missing.

    Of optional columns it would ignore one that is misspelt. Its nested array types are checked
    value by value in Python; `serving_model.to_pixels` checks the whole array at once.
    """
    from mlflow.models import ModelSignature
    from mlflow.types.schema import AnyType, ColSpec, DataType, Map, Schema, TensorSpec

    anything = AnyType()  # type: ignore[no-untyped-call]
    inputs: list[ColSpec | TensorSpec] = [ColSpec(anything, "image")]
    outputs: list[ColSpec | TensorSpec] = [
        ColSpec(DataType.string, "class_name"),
        ColSpec(DataType.double, "probability"),
        ColSpec(Map(DataType.double), "probabilities"),
    ]
    return ModelSignature(Schema(inputs), Schema(outputs))


def _example(input_shape: tuple[int, ...]) -> pd.DataFrame:
    """A drawn image, because one of the data set must not leave it: a ramp from black to white."""
    _, height, width = input_shape
    ramp = np.tile(np.linspace(0, 255, width).astype(np.uint8), (height, 1))
    Image.fromarray(ramp).save(file := io.BytesIO(), "PNG")
    return pd.DataFrame({"image": [base64.b64encode(file.getvalue()).decode()]})
