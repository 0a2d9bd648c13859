"""Parquet files of encoded images, as Hugging Face exports data sets."""

import json
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from kd_pipeline.data.image_files import open_image
from kd_pipeline.data.listing import ImageListing
from kd_pipeline.data.settings import ParquetSource
from kd_pipeline.data.shards import BLOCK, Shard, ShardContents, list_shards
from kd_pipeline.errors import DataError, ParameterError

MAX_GROUP_BYTES = 2**30
"""A row group is read whole."""
KEPT_BYTES = 2**27
"""The last two row groups are kept, and more up to this: threads read a few chunks of 8 MiB of
pixels each at a time, in the order of the rows."""


class ParquetKey(NamedTuple):
    """Where an image lies."""

    shard: str
    """Relative to the root."""
    row_group: int
    row: int
    """Within the row group."""


class ParquetReader:
    """Reader of images in a column of parquet files, for threads, which share its row groups."""

    def __init__(self, root: str, column: str) -> None:
        self.root, self.column = root, column
        self._kept: OrderedDict[tuple[str, int], pa.ChunkedArray | str] = OrderedDict()
        self._lock = Lock()

    def __call__(self, key: ParquetKey) -> Image.Image:
        """Take one image from its row group and parse its header.

        Raises:
            OSError: If the row group is damaged, or the row has no bytes of a raster image.
        """
        with self._lock:
            images = self._row_group(key.shard, key.row_group)
        if isinstance(images, str):
            raise OSError(images)
        if not (data := images[key.row].as_py()):
            raise OSError("the row holds no bytes of an image; paths are not followed")
        return open_image(data)

    def _row_group(self, shard: str, number: int) -> "pa.ChunkedArray | str":
        """A row group's images, or why it cannot be read, which is tried once."""
        place = shard, number
        if place not in self._kept:
            while len(self._kept) > 1 and self._num_bytes() > KEPT_BYTES:
                self._kept.popitem(last=False)
            try:
                self._kept[place] = self._read(shard, number)
            except Exception as error:  # Damaged pages lead to errors of any kind.
                self._kept[place] = f"row group {number} of {shard} is damaged: {error}"
        return self._kept[place]

    def _read(self, shard: str, number: int) -> pa.ChunkedArray:
        with pq.ParquetFile(Path(self.root, shard)) as file:
            images = file.read_row_group(number, columns=[self.column]).column(0)
        return pc.struct_field(images, "bytes") if pa.types.is_struct(images.type) else images

    def _num_bytes(self) -> int:
        return sum(0 if isinstance(kept, str) else kept.nbytes for kept in self._kept.values())


def list_parquet(source: ParquetSource) -> ImageListing:
    """List the rows of parquet files: encoded images with class numbers or names.

    Images are binary, or a struct with a field `bytes`. The names of class numbers are those of
    the settings, or of Hugging Face's metadata in the files. A row with null, -1 or empty text as
    label is unlabelled. Images are read in the order in which they are stored, a row group at a
    time, so that memory holds a few row groups whatever the size of the files.

    Raises:
        ParameterError: If a pattern matches nothing, a column is missing or of another type, or
            classes and labels do not fit together.
        DataError: If a file is damaged, has a row group that is too large, or there are no images.
    """

    def read(shard: Shard) -> ShardContents:
        with (
            shard.must_be("whole parquet files"),
            pq.ParquetFile(Path(source.root, shard.path)) as file,
        ):
            _check_columns(source, shard, file.schema_arrow)
            sizes = _row_group_sizes(shard, file.metadata)
            labels = file.read(columns=[source.label_column]).column(0).to_pylist()
            class_names = _class_names(file.schema_arrow.metadata, source.label_column)
            if sum(sizes) != len(labels):
                raise pa.ArrowInvalid(f"{sum(sizes)} rows with {len(labels)} labels")
        keys = [
            ParquetKey(shard.path, number, row)
            for number, size in enumerate(sizes)
            for row in range(size)
        ]
        labels = [None if label == "" else label for label in labels]
        return ShardContents([str(row) for row in range(len(keys))], keys, labels, class_names)

    reader = ParquetReader(source.root, source.image_column)
    return list_shards(source, read, reader, label_setting="label_column", by_processes=False)


def _check_columns(source: ParquetSource, shard: Shard, schema: pa.Schema) -> None:
    checks = (
        ("image_column", source.image_column, "encoded images (binary, or a struct with `bytes`)"),
        ("label_column", source.label_column, "integers or text"),
    )
    for setting, column, what in checks:
        name = f"{BLOCK}.{setting}"
        if schema.names.count(column) != 1:
            rule = f"name a column of {shard.path}"
            raise ParameterError(name, rule, column, legal=schema.names)
        kind = schema.field(column).type
        fits = _holds_images(kind) if setting == "image_column" else _holds_labels(kind)
        if not fits:
            rule = f"name a column of {what} in {shard.path}"
            raise ParameterError(name, rule, f"{column}: {kind}")


def _holds_images(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _holds_images(kind.field("bytes").type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _holds_labels(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    types = pa.types
    return bool(types.is_integer(kind) or types.is_string(kind) or types.is_large_string(kind))


def _row_group_sizes(shard: Shard, metadata: pq.FileMetaData) -> list[int]:
    """Number of rows in each row group, none of which holds too many bytes."""
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    # Not the image column's bytes: of a damaged file, asking for them would end the process.
    if (largest := max((group.total_byte_size for group in groups), default=0)) > MAX_GROUP_BYTES:
        raise DataError(
            f"`{BLOCK}.{shard.setting}` must be files of at most {MAX_GROUP_BYTES // 2**20} MiB in "
            f"a row group, got {largest // 2**20} MiB in {shard.path}; a smaller `row_group_size` "
            "writes such"
        )
    return [group.num_rows for group in groups]


def _class_names(metadata: Mapping[bytes, bytes] | None, column: str) -> tuple[str, ...] | None:
    """The names that Hugging Face's `datasets` keeps in a file's metadata, where there are any."""
    found: Any = json.loads((metadata or {}).get(b"huggingface", b"null"))
    for part in ("info", "features", column, "names"):
        found = found.get(part) if isinstance(found, dict) else None
    return tuple(map(str, found)) if isinstance(found, list) else None
