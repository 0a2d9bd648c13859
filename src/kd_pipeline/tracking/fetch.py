"""Models in MLflow as teachers: fetched into a folder, and only in formats that run no code."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kd_pipeline.errors import CheckpointError
from kd_pipeline.tracking.store import be_impatient, project_store

_PT2 = Path("data", "model.pt2")


@contextmanager
def fetched(given: Sequence[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    """The entries of `teacher.given`, those of MLflow with what was fetched under `model`.

    The files are there as long as the context lasts.
    """
    with tempfile.TemporaryDirectory() as folder:
        entries: list[Mapping[str, Any]] = []
        for position, entry in enumerate(given):
            own = Path(folder, str(position))
            own.mkdir()
            model = {"model": fetch_model(entry["uri"], own)} if entry["kind"] == "mlflow" else {}
            entries.append({**entry, **model})
        yield entries


def fetch_model(uri: str, folder: Path) -> dict[str, Any]:
    """Download a model of the project's store.

    Args:
        uri: `models:/name/version`, `models:/name@alias`, `models:/m-id` or `runs:/id/path`.
        folder: Where it is put; must exist.

    Returns:
        `format`: `exported_program` or `onnx`; `file`: where that is; `class_names`: as its
        metadata names them, or None.

    Raises:
        CheckpointError: If there is no such model, or it is saved in no format that can be read
            without running code.
    """
    be_impatient()
    import mlflow
    from mlflow.exceptions import MlflowException

    from kd_pipeline.tracking.models import fluent_uri

    try:
        with fluent_uri(project_store().uri):
            local = Path(
                mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(folder))
            )
            model = mlflow.models.Model.load(str(local))
    except (MlflowException, OSError) as error:
        raise CheckpointError(
            f"the model {uri} cannot be fetched from {project_store().public_uri}: {error}"
        ) from error
    names = (model.metadata or {}).get("class_names")
    return {**_file_of(local, model.flavors, uri), "class_names": names}


def _file_of(folder: Path, flavors: Mapping[str, Any], uri: str) -> dict[str, str]:
    if "onnx" in flavors:
        return {"format": "onnx", "file": str(folder / flavors["onnx"]["data"])}
    if "pytorch" in flavors:
        file = folder / flavors["pytorch"]["model_data"] / _PT2.name
        if file.is_file():
            return {"format": "exported_program", "file": str(file)}
    raise CheckpointError(
        f"the model {uri} must be saved as an exported program (mlflow.pytorch with "
        f"serialization_format='pt2') or as ONNX, got {', '.join(sorted(flavors))} as a pickle, "
        "which is never loaded: it could run code"
    )
