"""One part of a store: a parquet file of one member's logits for a shard of one view.

Columns: `example_id` (int64), `view` (int16), `teacher` (int16, the ensemble member) and `logits`
(fixed-size list of float16, before softmax, free of any temperature); top-k parts also have
`class_ids` (fixed-size list of uint16) and `tail_logit` (float16). The file's metadata says what
the whole store was made from, so that a part knows where it belongs.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from kd_pipeline.atomic import replace_file
from kd_pipeline.errors import StaleArtefactError
from kd_pipeline.soft_targets.encoding import EncodedLogits
from kd_pipeline.soft_targets.manifest import (
    FORMAT,
    Manifest,
    Part,
    describe_other_head,
    seal,
    unseal,
)

ROWS_PER_GROUP = 8_192
_PLACE = ("member", "view", "shard")


@dataclass(frozen=True)
class PartRows:
    """The rows of one part, in ascending order of example id."""

    member: int
    view: int
    example_ids: NDArray[np.int64]
    """[num_rows]"""
    logits: NDArray[np.float16]
    """[num_rows, num_classes], or [num_rows, k] in ascending order of class id."""
    class_ids: NDArray[np.uint16] | None = None
    """[num_rows, k] of a top-k store."""
    tail_logits: NDArray[np.float16] | None = None
    """[num_rows] of a top-k store."""


def write_part(
    folder: Path,
    part: Part,
    manifest: Manifest,
    example_ids: NDArray[np.int64],
    encoded: EncodedLogits,
) -> Part:
    """Write one part, which appears whole and on disk or not at all.

    Args:
        folder: Of the store.
        part: Which one.
        manifest: Of the store; its head is kept beside the rows.
        example_ids: int64 [num_rows], ascending.
        encoded: The part's rows.

    Returns:
        The part with its size and checksum.
    """
    table = _to_table(part, example_ids, encoded)
    head = seal({name: getattr(part, name) for name in _PLACE} | manifest.head())
    with replace_file(folder / part.file) as temporary:
        with pq.ParquetWriter(temporary, table.schema, **_WRITING) as writer:
            writer.write_table(table, row_group_size=ROWS_PER_GROUP)
            # Not in the table's schema: Arrow would keep a second copy of it there.
            writer.add_key_value_metadata({FORMAT: head})
        data = temporary.read_bytes()
    return replace(part, size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


_CLASS_IDS = "class_ids.list.element"
_WRITING: dict[str, Any] = {
    "compression": "zstd",
    "compression_level": {_CLASS_IDS: 19},  # A higher level gains nothing on logits.
    "use_dictionary": ["view", "teacher"],
    # DuckDB reads no float16 with its bytes split, though that would save one byte in twenty.
    "column_encoding": {"example_id": "DELTA_BINARY_PACKED", _CLASS_IDS: "BYTE_STREAM_SPLIT"},
    "write_statistics": ["example_id", "view", "teacher"],
    "write_page_checksum": True,
}


def _to_table(part: Part, example_ids: NDArray[np.int64], encoded: EncodedLogits) -> pa.Table:
    count = len(example_ids)
    columns = {
        "example_id": pa.array(example_ids),
        "view": pa.array(np.full(count, part.view, dtype=np.int16)),
        "teacher": pa.array(np.full(count, part.member, dtype=np.int16)),
        "logits": _list_array(encoded.logits, pa.float16()),
    }
    if encoded.class_ids is not None:
        columns["class_ids"] = _list_array(encoded.class_ids, pa.uint16())
        columns["tail_logit"] = pa.array(encoded.tail_logits, type=pa.float16())
    # Without nulls there are no levels to pack and unpack: half the time to read.
    fields = [pa.field(name, array.type, nullable=False) for name, array in columns.items()]
    return pa.table(list(columns.values()), schema=pa.schema(fields))


def _list_array(values: NDArray[Any], kind: pa.DataType) -> pa.FixedSizeListArray:
    flat = pa.array(values.reshape(-1), type=kind)
    element = pa.field("element", kind, nullable=False)
    return pa.FixedSizeListArray.from_arrays(flat, type=pa.list_(element, values.shape[1]))


def read_part(folder: Path, part: Part, manifest: Manifest) -> PartRows:
    """Read one part and check all of it: checksum, pages, rows, and where it belongs.

    Raises:
        StaleArtefactError: Naming the part and what is wrong with it.
    """
    columns = _read_columns(folder, part, manifest)
    ids, members, views = columns["example_id"], columns["teacher"], columns["view"]
    if (members != part.member).any() or (views != part.view).any() or (np.diff(ids) <= 0).any():
        raise StaleArtefactError(f"{part.file} holds rows of another member or view, or unsorted")
    return PartRows(
        part.member,
        part.view,
        ids,
        columns["logits"],
        columns.get("class_ids"),
        columns.get("tail_logit"),
    )


def read_example_ids(folder: Path, part: Part, manifest: Manifest) -> NDArray[np.int64]:
    """Read and check one part, but decode only its ids: int64 [num_rows]."""
    return _read_columns(folder, part, manifest, names=["example_id"])["example_id"]


def part_problem(folder: Path, part: Part, manifest: Manifest) -> str | None:
    """What is wrong with a part as far as its place and size tell, in words; None if nothing."""
    path = folder / part.file
    if not path.is_file():
        return f"{part.file} is missing"
    if path.stat().st_size == part.size_bytes:
        return None
    return other_origin(path.read_bytes(), part, manifest) or (
        f"{part.file} is damaged: it has {path.stat().st_size} bytes instead of {part.size_bytes}"
    )


def damage(folder: Path, part: Part, manifest: Manifest) -> str | None:
    """What is wrong with a part's bytes, in words; None if they are those once written."""
    try:
        _checked_bytes(folder, part, manifest)
    except StaleArtefactError as error:
        return str(error)
    return None


def other_origin(data: bytes, part: Part, manifest: Manifest) -> str | None:
    """Where a part that does not belong here comes from, in words; None if it cannot be told."""
    found = read_head(data)
    if found is None:
        return None
    place = {name: found.pop(name) for name in _PLACE if name in found}
    if differences := describe_other_head(found, manifest.head()):
        return f"{part.file} is a part of another store: {' and '.join(differences)}"
    if place != {name: getattr(part, name) for name in _PLACE}:
        told = " ".join(f"{name} {value}" for name, value in place.items())
        return f"{part.file} is not where it belongs: it holds {told}"
    return None


def read_head(source: bytes | Path) -> dict[str, Any] | None:
    """What a part says that it belongs to; None if it says nothing that is intact."""
    try:
        file = pa.BufferReader(source) if isinstance(source, bytes) else source
        metadata: Mapping[bytes, bytes] = pq.read_metadata(file).metadata or {}
        return unseal(metadata[FORMAT.encode()])
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError):
        return None


def _checked_bytes(folder: Path, part: Part, manifest: Manifest) -> bytes:
    try:
        data = (folder / part.file).read_bytes()
    except FileNotFoundError as error:
        raise StaleArtefactError(f"{part.file} is missing") from error
    if origin := other_origin(data, part, manifest):
        raise StaleArtefactError(origin)
    if hashlib.sha256(data).hexdigest() != part.sha256:
        raise StaleArtefactError(f"{part.file} is damaged: its checksum differs")
    return data


def _read_columns(
    folder: Path, part: Part, manifest: Manifest, *, names: list[str] | None = None
) -> dict[str, NDArray[Any]]:
    data = _checked_bytes(folder, part, manifest)
    try:
        source = pa.BufferReader(data)
        with pq.ParquetFile(source, page_checksum_verification=True) as file:
            if file.metadata.num_rows != part.num_rows:
                raise ValueError(f"it has {file.metadata.num_rows} rows, not {part.num_rows}")
            return _decode(file, names)
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise StaleArtefactError(f"{part.file} is damaged: {error}") from error


def _decode(file: pq.ParquetFile, names: list[str] | None) -> dict[str, NDArray[Any]]:
    """Decode row group by row group into arrays made once: no second copy of a whole part."""
    columns: dict[str, NDArray[Any]] = {}
    start = 0
    for group in range(file.num_row_groups):
        table = file.read_row_group(group, columns=names)
        for name in table.column_names:
            values = _to_numpy(table.column(name))
            if name not in columns:
                shape = (file.metadata.num_rows, *values.shape[1:])
                columns[name] = np.empty(shape, dtype=values.dtype)
            columns[name][start : start + len(values)] = values
        start += table.num_rows
    return columns


def _to_numpy(column: pa.ChunkedArray) -> NDArray[Any]:
    array = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    if not pa.types.is_fixed_size_list(array.type):
        return np.asarray(array.to_numpy(zero_copy_only=True))
    flat = array.flatten().to_numpy(zero_copy_only=True)
    return np.asarray(flat).reshape(len(array), array.type.list_size)
