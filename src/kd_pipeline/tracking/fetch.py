"""Models in MLflow as teachers: fetched into a folder, and only in formats that run no code."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from kd_pipeline.errors import CheckpointError
from kd_pipeline.models.given import FetchedModel
from kd_pipeline.models.settings import Given
from kd_pipeline.tracking.fluent import fluent_uri, within
from kd_pipeline.tracking.models import CHECKPOINT
from kd_pipeline.tracking.store import Store, open_client, redact


@contextmanager
def fetched(given: Sequence[Given], store: Store) -> Iterator[list[FetchedModel | None]]:
    """Fetch the entries of `teacher.given` that are of kind mlflow; None for the others.

    The files are removed at the end of the context.
    """
    # What is no longer waited for may still write there.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        yield [
            fetch_model(entry.uri, Path(folder, str(position)), store)
            if entry.kind == "mlflow"
            else None
            for position, entry in enumerate(given)
        ]


def fetch_model(uri: str, folder: Path, store: Store) -> FetchedModel:
    """Download a model of a store into a folder, which is made if missing.

    Args:
        uri: `models:/name/version`, `models:/name@alias`, `models:/m-id` or `runs:/id/path`.
        folder: For its files.
        store: That holds the model.

    Raises:
        CheckpointError: If there is no such model, it does not come within
            `store.max_wait_seconds`, or it is saved in no format that can be read without running
            code.
    """
    import mlflow
    from mlflow.exceptions import MlflowException

    def download() -> str:
        open_client(store)
        with fluent_uri(store.uri):
            found = mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(folder))
        return str(found)

    folder.mkdir(parents=True, exist_ok=True)
    try:
        local = within(store.max_wait_seconds, download)
        model = mlflow.models.Model.load(local)
    except (MlflowException, OSError) as error:
        raise CheckpointError(
            f"the model {uri} cannot be fetched from {store.public_uri}: {redact(str(error))}"
        ) from error
    names = (model.metadata or {}).get("class_names")
    class_names = None if names is None else tuple(names)
    if (checkpoint := Path(local, CHECKPOINT)).is_dir():
        return FetchedModel(checkpoint, "checkpoint", class_names)
    if "onnx" in model.flavors:
        return FetchedModel(Path(local, model.flavors["onnx"]["data"]), "onnx", class_names)
    raise CheckpointError(
        f"the model {uri} must be ONNX or one that this project has logged, got "
        f"{', '.join(sorted(model.flavors))}, which is not loaded: it could run code; give it as "
        "ONNX, or as an architecture with a state dict"
    )
