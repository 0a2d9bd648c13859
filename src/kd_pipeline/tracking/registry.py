"""Exported students in MLflow's model registry, where the best one has the alias `champion`."""

import logging
import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kd_pipeline.tracking.fluent import fluent_uri, within
from kd_pipeline.tracking.groups import TEST_FINGERPRINT
from kd_pipeline.tracking.store import Store, open_client, reason_of
from kd_pipeline.tracking.student_model import PREDICTIONS, log_student

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

MODEL_NAME = "student"
CHAMPION = "champion"

PairedInterval: TypeAlias = Callable[[NDArray[np.float64], NDArray[np.float64]], Sequence[float]]
"""Low and high of the accuracy of a candidate minus that of the champion.

Takes 1 where each is right and 0 where not, both [1, num_examples] on the same examples.
"""

_COLUMNS = ["example_id", "label", "predicted"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Registration:
    """What became of a student in the registry."""

    version: str | None
    """None where MLflow could not be reached or refused it."""
    is_champion: bool
    reason: str
    """Why it is the champion, or why not."""


def register_student(
    store: Store,
    *,
    onnx_file: Path,
    card: Mapping[str, Any],
    predictions: pd.DataFrame,
    paired_interval: PairedInterval,
    name: str = MODEL_NAME,
) -> Registration:
    """Register an exported student; make it the champion if it is the first or beats the present.

    It beats it where both are measured on the same test set and the paired interval of the
    difference of their accuracies is above zero. No failure of MLflow is raised, and after
    `store.max_wait_seconds` it is not waited for.

    Args:
        store: Whose registry it is.
        onnx_file: Takes uint8 `pixels` and gives float32 `logits`.
        card: With `class_names`, `input_shape`, `student`, `checkpoint`, `group` and
            `test_fingerprint`; stored with the model.
        predictions: Of the file, for the whole test set: `example_id`, `label` and `predicted`,
            stored with the model so that a later candidate can be compared.
        paired_interval: Such as `paired_difference` of `kd_pipeline.evaluation` gives.
        name: Of the registered model.
    """
    table = _sorted(predictions)
    tags = {f"kd.{key}": str(card[key]) for key in ("checkpoint", "group", "test_fingerprint")}
    tags |= {"kd.role": str(card["student"]), "kd.accuracy": f"{_right(table).mean():.6f}"}

    started = time.monotonic()

    def register() -> Registration:
        model_id = log_student(store, onnx_file=onnx_file, card=card, predictions=table)
        # After the upload, which takes long: another run may have registered a champion by then.
        wins, reason = _compare(store, name, table, tags[TEST_FINGERPRINT], paired_interval)
        if time.monotonic() - started > (store.max_wait_seconds or math.inf):
            raise TimeoutError  # It was reported that nothing is registered.
        stored = {**tags, "kd.champion": reason}
        version = _create_version(store, name, model_id, stored, is_champion=wins)
        return Registration(version, wins, reason)

    try:
        made = within(store.max_wait_seconds, register)
    except Exception as error:  # Of mlflow, requests, sqlalchemy or an object store.
        reason = f"MLflow at {store.public_uri} did not register it: {reason_of(error)}"
        logger.warning("The run goes on, but %s", reason)
        return Registration(None, False, reason)
    of = (card["student"], made.version, name, made.reason)
    logger.info("%s is version %s of `%s` in MLflow: %s", *of)
    return made


def find_champion(store: Store, name: str = MODEL_NAME) -> "ModelVersion | None":
    """The version with the alias `champion`; None where there is no such model or alias.

    Raises:
        MlflowException: If the store cannot be reached.
    """
    client = open_client(store)
    # The alias is not asked for by name: MLflow's error for a missing one differs by kind of store.
    for model in client.search_registered_models(f"name = '{name}'"):
        if version := model.aliases.get(CHAMPION):
            return client.get_model_version(name, version)
    return None


def read_predictions(store: Store, name: str, version: str) -> pd.DataFrame:
    """The predictions that a version was registered with, in the order of `example_id`."""
    import mlflow

    uri = f"models:/{name}/{version}/{PREDICTIONS}"
    with fluent_uri(store.uri), tempfile.TemporaryDirectory() as folder:
        file = mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=folder)
        return pd.read_parquet(file)


def _compare(
    store: Store,
    name: str,
    candidate: pd.DataFrame,
    test_fingerprint: str,
    paired_interval: PairedInterval,
) -> tuple[bool, str]:
    """Whether a candidate is to be the champion, and why."""
    champion = find_champion(store, name)
    if champion is None:
        return True, "champion: the first of this name"
    theirs = champion.tags.get(TEST_FINGERPRINT)
    if theirs != test_fingerprint:
        return False, (
            f"not compared: the champion, version {champion.version}, was measured on test set "
            f"{theirs}, this one on {test_fingerprint}; move the alias by hand if it should serve"
        )
    table = read_predictions(store, name, champion.version)
    if not table[["example_id", "label"]].equals(candidate[["example_id", "label"]]):
        return False, (
            f"not compared: the champion, version {champion.version}, was measured on other test "
            "examples or labels although the test fingerprint is the same"
        )
    mine, its = _right(candidate), _right(table)
    low, high = paired_interval(mine[None], its[None])
    facts = (
        f"accuracy {mine.mean():.4f} against {its.mean():.4f} of version {champion.version}, "
        f"paired interval of the difference [{low:+.4f}, {high:+.4f}]"
    )
    if low > 0:
        return True, f"champion: {facts}"
    return False, f"not the champion, because the interval must be above zero: {facts}"


def _create_version(
    store: Store, name: str, model_id: str, tags: Mapping[str, str], *, is_champion: bool
) -> str:
    import mlflow

    with fluent_uri(store.uri):
        registered = mlflow.register_model(f"models:/{model_id}", name, tags=dict(tags))
        version = str(registered.version)
        if is_champion:
            open_client(store).set_registered_model_alias(name, CHAMPION, version)
    return version


def _sorted(predictions: pd.DataFrame) -> pd.DataFrame:
    """The columns that are stored, in the order of `example_id`."""
    return predictions[_COLUMNS].sort_values("example_id", ignore_index=True).astype("int64")


def _right(predictions: pd.DataFrame) -> NDArray[np.float64]:
    """1 where a prediction is the label, else 0; [num_examples]."""
    right = predictions["label"] == predictions["predicted"]
    return np.asarray(right, dtype=np.float64)
