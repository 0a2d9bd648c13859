"""Logits computed elsewhere: a checkpoint that holds what a model said instead of the model."""

import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kd_pipeline.errors import DataError, ParameterError, StaleArtefactError
from kd_pipeline.models.checkpoint import IMPORTED_LOGITS, ModelCheckpoint
from kd_pipeline.models.preprocessing import Preprocessing

_IDS, _LOGITS = "example_ids", "logits"
_IMAGES = "images"


def is_imported(checkpoint: ModelCheckpoint) -> bool:
    """Whether a checkpoint holds logits and no model."""
    return checkpoint.architecture == IMPORTED_LOGITS


def imported_checkpoint(
    example_ids: NDArray[np.int64],
    logits: NDArray[np.float32],
    *,
    class_names: Sequence[str],
    shape: tuple[int, int, int],
    images_fingerprint: str,
    facts: Mapping[str, Any],
) -> ModelCheckpoint:
    """Put logits and the ids that they belong to into a checkpoint.

    Args:
        example_ids: int64 [num_examples], ascending.
        logits: float32 [num_examples, num_classes], in the order of `class_names`.
        class_names: The images' classes.
        shape: Channels, height and width of the images.
        images_fingerprint: Of the images that the ids number; they mean nothing with others.
        facts: What is known of their origin.
    """
    state = {_IDS: torch.as_tensor(example_ids), _LOGITS: torch.as_tensor(logits)}
    channels = shape[0]
    unchanged = Preprocessing(shape, (0.0,) * channels, (1.0,) * channels)
    arguments = {_IMAGES: images_fingerprint}
    return ModelCheckpoint(IMPORTED_LOGITS, arguments, tuple(class_names), unchanged, state, facts)


def read_logits(
    file: Path, *, name: str
) -> tuple[NDArray[np.int64], NDArray[np.float32], list[Sequence[str]]]:
    """Read logits computed elsewhere.

    Args:
        file: `.parquet` with a column `example_id` and either a list column `logits` or one column
            per class, named like it; or `.npz` with arrays `example_ids`, `logits` and, if they
            are known, `class_names`. Nothing in them is unpickled.
        name: Of the entry in YAML.

    Returns:
        Example ids int64 [n], ascending; logits float32 [n, num_classes]; the names of the
        classes as a list of one, or empty.

    Raises:
        ParameterError: If there is no such file.
        DataError: If it is not as described, an id comes twice, or the logits are not finite or
            are probabilities.
    """
    if not file.is_file():
        raise ParameterError(f"{name}.file", "be an existing file", str(file))
    read = _read_npz if file.suffix == ".npz" else _read_parquet
    try:
        ids, logits, class_names = read(file)
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise DataError(f"`{name}.file` {file} holds no logits with ids: {error!r}") from error
    _check_logits(ids, logits, name=name)
    order = np.argsort(ids)
    return ids[order], logits[order].astype(np.float32), class_names


def _read_npz(file: Path) -> tuple[Any, Any, list[Sequence[str]]]:
    with np.load(file, allow_pickle=False) as arrays:
        names = [arrays["class_names"].astype(str).tolist()] if "class_names" in arrays else []
        return arrays["example_ids"], arrays["logits"], names


def _read_parquet(file: Path) -> tuple[Any, Any, list[Sequence[str]]]:
    import pyarrow.parquet as pq

    table = pq.read_table(file)
    ids = table.column("example_id").to_numpy()
    columns = [column for column in table.column_names if column != "example_id"]
    if columns == ["logits"]:
        rows = table.column("logits").to_pylist()
        names = (table.schema.metadata or {}).get(b"class_names")
        return ids, np.array(rows, dtype=np.float64), [] if names is None else [json.loads(names)]
    return ids, np.stack([table.column(c).to_numpy() for c in columns], axis=1), [columns]


def _check_logits(ids: NDArray[Any], logits: NDArray[Any], *, name: str) -> None:
    if ids.dtype != np.int64 or ids.ndim != 1:
        raise DataError(f"`{name}` must have int64 example ids, got {ids.dtype} {ids.shape}")
    if logits.dtype.kind != "f" or logits.ndim != 2 or len(logits) != len(ids):
        raise DataError(
            f"`{name}` must have float logits of shape ({len(ids)}, num_classes), got "
            f"{logits.dtype} {logits.shape}"
        )
    unique, counts = np.unique(ids, return_counts=True)
    if len(unique) != len(ids):
        raise DataError(
            f"`{name}` must have each example id once, got {unique[counts > 1][0]} "
            f"{counts.max()} times"
        )
    if not np.isfinite(logits).all():
        bad = ids[~np.isfinite(logits).all(axis=1)]
        raise DataError(f"`{name}` must have finite logits, got NaN or infinity for {bad[:3]}")
    if (logits >= 0).all() and np.allclose(logits.sum(axis=1), 1, atol=1e-3):
        raise DataError(
            f"`{name}` must have logits, got probabilities that sum to 1: save what goes into the "
            "softmax, or the logarithm of what comes out of it"
        )


def covers(checkpoint: ModelCheckpoint, example_ids: NDArray[np.int64]) -> bool:
    """Whether a checkpoint can say something of every one of these examples."""
    return not is_imported(checkpoint) or not len(_unknown(checkpoint, example_ids))


def check_covers(checkpoint: ModelCheckpoint, example_ids: NDArray[np.int64], *, what: str) -> None:
    """Refuse imported logits that leave out some of these examples.

    Args:
        checkpoint: Of any kind; a model covers everything.
        example_ids: int64 [num_examples].
        what: What these examples are, for the message.

    Raises:
        DataError: It counts and names the first that are missing.
    """
    if is_imported(checkpoint) and len(missing := _unknown(checkpoint, example_ids)):
        raise DataError(
            f"the imported logits must cover {what}, got {len(missing)} of {len(example_ids)} "
            f"examples without logits, first {missing[:3].tolist()}"
        )


class ImportedLogits:
    """Looks logits up by example id, as a `Predictor`."""

    def __init__(self, checkpoint: ModelCheckpoint, *, images_fingerprint: str) -> None:
        """Refuse logits that were numbered by other images.

        Raises:
            StaleArtefactError: Then the same ids are other examples.
        """
        if checkpoint.arguments[_IMAGES] != images_fingerprint:
            raise StaleArtefactError(
                "the imported logits of `teacher.given` were imported for other images than those "
                "at hand, where the same `example_id` is another example; run "
                "`kedro run --pipelines=teacher_training` with logits of these images"
            )
        self._checkpoint = checkpoint

    def logits(
        self, example_ids: NDArray[np.int64], *, view: int = 0, description: str = "predict"
    ) -> Tensor:
        """Look up these examples' logits.

        Args:
            example_ids: int64 [num_examples].
            view: 0: only the clean image has imported logits.
            description: Names these examples where some are missing.

        Returns:
            float32 [num_examples, num_classes], in the order of the checkpoint's `class_names`.

        Raises:
            DataError: If an example has no logits, or another view is asked for.
        """
        if view != 0:
            raise DataError(f"imported logits have only the clean view 0, got view {view}")
        check_covers(self._checkpoint, example_ids, what=f"every example of `{description}`")
        state = self._checkpoint.state
        rows = np.searchsorted(state[_IDS].numpy(), example_ids)
        found = state[_LOGITS][torch.as_tensor(rows)]
        order = self._checkpoint.class_order
        return found.clone() if order is None else found[:, list(order)]


def _unknown(checkpoint: ModelCheckpoint, example_ids: NDArray[np.int64]) -> NDArray[np.int64]:
    known = np.isin(example_ids, checkpoint.state[_IDS].numpy())
    return np.asarray(example_ids[~known])
