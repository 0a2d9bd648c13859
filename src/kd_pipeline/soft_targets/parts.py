"""One part of a store: a parquet file of one member's logits for a shard of one view.

Columns: `example_id` (int64), `view` (int16), `teacher` (int16, the ensemble member) and `logits`
(fixed-size list of float16, before softmax, free of any temperature); top-k parts also have
`class_ids` (fixed-size list of uint16) and `tail_logit` (float16). The file's metadata holds the
head of the store's manifest and the part's place in it.
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
from kd_pipeline.checksums import checked_dumps, checked_loads
from kd_pipeline.errors import StaleArtefactError
from kd_pipeline.soft_targets.encoding import encode_logits
from kd_pipeline.soft_targets.manifest import FORMAT, Manifest, Part
from kd_pipeline.teacher_logits import TeacherLogits

ROWS_PER_GROUP = 8_192
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


@dataclass(frozen=True)
class PartRows:
    """The rows of one part, in ascending order of example id."""

    member: int
    view: int
    example_ids: NDArray[np.int64]
    """[num_rows]"""
    rows: TeacherLogits[NDArray[Any]]
    """float16 [num_rows, num_classes], or of the top k: uint16 class ids in ascending order."""


def write_part(
    folder: Path,
    part: Part,
    manifest: Manifest,
    example_ids: NDArray[np.int64],
    logits: NDArray[np.float32],
) -> Part:
    """Write one part, which appears whole and on disk or not at all.

    `example_ids`, int64 [num_rows], ascend; `logits`, float32 [num_rows, num_classes], are refused
    as by `encode_logits`. The part is returned with its size and checksum.
    """
    rows = encode_logits(
        logits, manifest.encoding, member=part.member, view=part.view, example_ids=example_ids
    )
    table = _to_table(PartRows(part.member, part.view, example_ids, rows))
    with replace_file(folder / part.file) as temporary:
        with pq.ParquetWriter(temporary, table.schema, **_WRITING) as writer:
            writer.write_table(table, row_group_size=ROWS_PER_GROUP)
            # Not in the table's schema: Arrow would keep a second copy of it there.
            writer.add_key_value_metadata({FORMAT: checked_dumps(part.place | manifest.head())})
        return _measured(part, temporary.read_bytes())


def read_part(folder: Path, part: Part, manifest: Manifest) -> PartRows:
    """Read one part and check all of it: checksum, pages, rows, and where it belongs.

    Raises:
        StaleArtefactError: Naming the part and what is wrong with it.
    """
    columns = _decode(part, checked_bytes(folder, part, manifest), manifest)
    ids, members, views = columns["example_id"], columns["teacher"], columns["view"]
    if (members != part.member).any() or (views != part.view).any() or (np.diff(ids) <= 0).any():
        raise StaleArtefactError(f"{part.file} holds rows of another member or view, or unsorted")
    rows = TeacherLogits(columns["logits"], columns.get("class_ids"), columns.get("tail_logit"))
    return PartRows(part.member, part.view, ids, rows)


def recover_part(folder: Path, part: Part, manifest: Manifest) -> Part:
    """A part that was written but is in no manifest yet, with its size and checksum.

    Raises:
        StaleArtefactError: If it is damaged or of another store.
    """
    data = checked_bytes(folder, part, manifest)
    _decode(part, data, manifest)
    return _measured(part, data)


def checked_bytes(folder: Path, part: Part, manifest: Manifest) -> bytes:
    """The bytes of a part, which must have been written for this place of this store.

    Raises:
        StaleArtefactError: If it is missing, damaged or was written for another place or store.
    """
    try:
        data = (folder / part.file).read_bytes()
    except FileNotFoundError as error:
        raise StaleArtefactError(f"{part.file} is missing") from error
    if origin := _other_origin(data, part, manifest):
        raise StaleArtefactError(origin)
    if part.sha256 not in ("", hashlib.sha256(data).hexdigest()):
        raise StaleArtefactError(f"{part.file} is damaged: its checksum differs")
    return data


def part_problem(folder: Path, part: Part, manifest: Manifest, size: int | None) -> str | None:
    """What is wrong with a part of this size, None where it is missing; None where nothing is."""
    if size is None:
        return f"{part.file} is missing"
    if size == part.size_bytes:
        return None
    return _other_origin((folder / part.file).read_bytes(), part, manifest) or (
        f"{part.file} is damaged: it has {size} bytes instead of {part.size_bytes}"
    )


def read_head(source: bytes | Path) -> dict[str, Any] | None:
    """The head and the place that a part was written for; None if it is damaged or missing."""
    try:
        file = pa.BufferReader(source) if isinstance(source, bytes) else source
        metadata: Mapping[bytes, bytes] = pq.read_metadata(file).metadata or {}
        return checked_loads(metadata[FORMAT.encode()])
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError):
        return None


def _other_origin(data: bytes, part: Part, manifest: Manifest) -> str | None:
    """Which store or place a part was written for if not this; None if it is damaged."""
    head = read_head(data)
    if head is None:
        return None
    place = {name: head.pop(name) for name in part.place if name in head}
    if found := manifest.differences_from(head):
        return f"{part.file} is a part of another store: {' and '.join(found)}"
    if place != part.place:
        where = " ".join(f"{name} {value}" for name, value in place.items())
        return f"{part.file} is not where it belongs: it holds {where}"
    return None


def _measured(part: Part, data: bytes) -> Part:
    return replace(part, size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def _to_table(part: PartRows) -> pa.Table:
    count, rows = len(part.example_ids), part.rows
    columns = {
        "example_id": pa.array(part.example_ids),
        "view": pa.array(np.full(count, part.view, dtype=np.int16)),
        "teacher": pa.array(np.full(count, part.member, dtype=np.int16)),
        "logits": _list_array(rows.logits),
    }
    if rows.class_ids is not None:
        columns["class_ids"] = _list_array(rows.class_ids)
        columns["tail_logit"] = pa.array(rows.tail_logits)
    # Without nulls there are no levels to pack and unpack: half the time to read.
    fields = [pa.field(name, array.type, nullable=False) for name, array in columns.items()]
    return pa.table(list(columns.values()), schema=pa.schema(fields))


def _schema(manifest: Manifest) -> pa.Schema:
    """The columns of any part of a store."""
    ids, num_classes = np.empty(0, np.int64), len(manifest.provenance.class_names)
    logits = np.empty((0, num_classes), np.float32)
    rows = encode_logits(logits, manifest.encoding, member=0, view=0, example_ids=ids)
    return _to_table(PartRows(0, 0, ids, rows)).schema


def _list_array(values: NDArray[Any]) -> pa.FixedSizeListArray:
    flat = pa.array(values.reshape(-1))
    element = pa.field("element", flat.type, nullable=False)
    return pa.FixedSizeListArray.from_arrays(flat, type=pa.list_(element, values.shape[1]))


def _decode(part: Part, data: bytes, manifest: Manifest) -> dict[str, NDArray[Any]]:
    try:
        source = pa.BufferReader(data)
        with pq.ParquetFile(source, page_checksum_verification=True) as file:
            if file.metadata.num_rows != part.num_rows:
                raise ValueError(f"it has {file.metadata.num_rows} rows, not {part.num_rows}")
            table = file.read()
        if not table.schema.equals(_schema(manifest)):
            # No checksum of a page covers the footer, which names the columns.
            raise ValueError(f"it has the columns {table.column_names} or other types of them")
        return {name: _to_numpy(table.column(name)) for name in table.column_names}
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise StaleArtefactError(f"{part.file} is damaged: {error}") from error


def _to_numpy(column: pa.ChunkedArray) -> NDArray[Any]:
    array = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    if not pa.types.is_fixed_size_list(array.type):
        return np.asarray(array.to_numpy())
    flat = array.flatten().to_numpy()
    return np.asarray(flat).reshape(len(array), array.type.list_size)
