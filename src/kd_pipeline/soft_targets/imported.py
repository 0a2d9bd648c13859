"""Logits computed elsewhere, read from a file: the teacher itself is not at hand."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from kd_pipeline.errors import DataError, ParameterError

Declared = Sequence[Sequence[str]]
"""The names of a file's classes in their order, as a list of one; empty where it has none."""


@dataclass(frozen=True)
class ImportedLogits:
    """A teacher's logits of the clean images, by example id."""

    example_ids: NDArray[np.int64]
    """[n], ascending."""
    logits: NDArray[np.float32]
    """[n, num_classes], in the order of `class_names`."""
    class_names: tuple[str, ...]

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits over ids, logits and class names."""
        digest = hashlib.sha256(json.dumps(self.class_names).encode())
        digest.update(np.ascontiguousarray(self.example_ids, dtype="<i8").data)
        digest.update(np.ascontiguousarray(self.logits, dtype="<f4").data)
        return digest.hexdigest()[:16]

    def covers(self, example_ids: NDArray[np.int64]) -> bool:
        """Whether every one of these examples has logits."""
        return bool(np.isin(example_ids, self.example_ids).all())

    def check_covers(self, example_ids: NDArray[np.int64], *, what: str) -> None:
        """Refuse logits that leave out some of these examples.

        Raises:
            DataError: With `what` the examples are, how many are missing, and the first of them.
        """
        missing = example_ids[~np.isin(example_ids, self.example_ids)]
        if len(missing):
            raise DataError(
                f"the imported logits must cover {what}, got {len(missing)} of {len(example_ids)} "
                f"examples without logits, first {missing[:3].tolist()}"
            )

    def rows(
        self, example_ids: NDArray[np.int64], what: str = "every example asked for"
    ) -> NDArray[np.float32]:
        """A copy of these examples' logits, float32 [num_examples, num_classes]."""
        self.check_covers(example_ids, what=what)
        return np.asarray(self.logits[np.searchsorted(self.example_ids, example_ids)])


def read_imported_logits(
    file: Path,
    *,
    class_names: tuple[str, ...],
    order_of: Callable[[Declared], Sequence[int] | None],
    name: str,
) -> ImportedLogits:
    """Read logits computed elsewhere.

    Args:
        file: `.parquet` with a column `example_id` and either a list column `logits` or one column
            per class, named like it; or `.npz` with arrays `example_ids`, `logits` and, if they
            are known, `class_names`. Nothing in them is unpickled.
        class_names: The images' classes.
        order_of: From the names that the file declares to the column of each of the images'
            classes, None where the order is the same; raises where the classes are others.
        name: Of the entry in YAML.

    Raises:
        ParameterError: If there is no such file.
        DataError: If it is not as described, an id comes twice, or the logits are not finite, are
            probabilities or are of another number of classes.
    """
    if not file.is_file():
        raise ParameterError(f"{name}.file", "be an existing file", str(file))
    read = _read_npz if file.suffix == ".npz" else _read_parquet
    try:
        ids, logits, declared = read(file)
    except Exception as error:  # Damaged files lead zipfile and NumPy to errors of any kind.
        raise DataError(f"`{name}.file` {file} holds no logits with ids: {error!r}") from error
    _check(ids, logits, name=name)
    columns = order_of(declared)
    if logits.shape[1] != len(class_names):
        raise DataError(
            f"`{name}` must have the images' classes: {logits.shape[1]} logits where the images "
            f"have {len(class_names)} classes"
        )
    rows = np.argsort(ids)
    ordered = logits[rows].astype(np.float32)
    return ImportedLogits(
        ids[rows], ordered if columns is None else ordered[:, list(columns)], class_names
    )


def _read_npz(file: Path) -> tuple[Any, Any, Declared]:
    # Opened here: NumPy leaves a file open that is no archive.
    with file.open("rb") as opened, np.load(opened, allow_pickle=False) as arrays:
        names = [arrays["class_names"].astype(str).tolist()] if "class_names" in arrays else []
        return arrays["example_ids"], arrays["logits"], names


def _read_parquet(file: Path) -> tuple[Any, Any, Declared]:
    table = pq.read_table(file)
    ids = table.column("example_id").to_numpy()
    columns = [column for column in table.column_names if column != "example_id"]
    if columns == ["logits"]:
        rows = np.concatenate([_matrix(chunk) for chunk in table.column("logits").chunks])
        names = (table.schema.metadata or {}).get(b"class_names")
        return ids, rows, [] if names is None else [json.loads(names)]
    return ids, np.stack([table.column(c).to_numpy() for c in columns], axis=1), [columns]


def _matrix(lists: pa.Array) -> NDArray[Any]:
    """Lists of equal length as an array [num_rows, length], without Python's numbers."""
    lengths = pc.unique(pc.list_value_length(lists)).to_pylist()
    if len(lengths) != 1 or lengths[0] is None:
        raise ValueError(f"`logits` must be lists of one length, got {lengths[:3]}")
    values = lists.flatten().to_numpy(zero_copy_only=False)
    return np.asarray(values).reshape(len(lists), lengths[0])


def _check(ids: NDArray[Any], logits: NDArray[Any], *, name: str) -> None:
    if ids.dtype != np.int64 or ids.ndim != 1:
        raise DataError(f"`{name}` must have int64 example ids, got {ids.dtype} {ids.shape}")
    if logits.dtype.kind != "f" or logits.ndim != 2 or len(logits) != len(ids):
        raise DataError(
            f"`{name}` must have float logits of shape ({len(ids)}, num_classes), got "
            f"{logits.dtype} {logits.shape}"
        )
    unique, counts = np.unique(ids, return_counts=True)
    if len(unique) != len(ids):
        at = counts.argmax()
        raise DataError(
            f"`{name}` must have each example id once, got {unique[at]} {counts[at]} times"
        )
    # Of float64 in a file, more than float32 holds would become infinity.
    finite = (np.abs(logits) <= np.finfo(np.float32).max).all(axis=1)
    if not finite.all():
        bad = ids[~finite][:3].tolist()
        raise DataError(f"`{name}` must have finite float32 logits, got NaN or infinity for {bad}")
    if (
        len(ids)
        and (logits >= 0).all()
        and np.allclose(logits.sum(axis=1, dtype=float), 1, atol=1e-3)
    ):
        raise DataError(
            f"`{name}` must have logits, got probabilities that sum to 1: save what goes into the "
            "softmax, or the logarithm of what comes out of it"
        )
