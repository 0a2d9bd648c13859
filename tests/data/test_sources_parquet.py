"""parquet: columns, class names, rows that are rejected, damaged files, row groups in memory."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kd_pipeline.data import sources_parquet
from kd_pipeline.data.ingest import IngestedImages, ingest_images
from kd_pipeline.data.settings import DataIngestParams, ParquetSource
from kd_pipeline.data.sources_parquet import list_parquet
from kd_pipeline.errors import DataError, ParameterError

Encoded = Callable[[int], bytes]
Write = Callable[..., Path]


def source(root: Path, **settings: Any) -> ParquetSource:
    block = {"kind": "parquet", "root": str(root), "train": "*.parquet", **settings}
    return ParquetSource.model_validate(block)


def ingested(root: Path, **settings: Any) -> IngestedImages:
    params = {"source": source(root, **settings), "max_rejected_share": 1.0}
    return ingest_images(DataIngestParams.model_validate(params))


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
@pytest.mark.parametrize(
    "labels",
    [
        pa.array(["owl", "emu", "owl", "emu", None, ""]),
        pa.array(["owl", "emu", "owl", "emu", None, ""], pa.large_string()),
        pa.array(["owl", "emu", "owl", "emu", None, ""]).dictionary_encode(),
    ],
)
def test_plain_bytes_and_names(
    tmp_path: Path, write_parquet: Write, encoded: Encoded, kind: pa.DataType, labels: pa.Array
) -> None:
    write_parquet("a.parquet", pa.array(map(encoded, range(6)), kind), labels)
    found = ingested(tmp_path)
    assert found.images.class_names == ("emu", "owl")
    assert found.examples["class_name"].fillna("-").tolist() == ["owl", "emu"] * 2 + ["-"] * 2
    assert found.examples["source"].tolist() == [f"a.parquet/{row}" for row in range(6)]
    assert len(found.rejected) == 0


def test_class_numbers_of_hugging_face_with_other_columns(
    tmp_path: Path, write_parquet: Write, encoded: Encoded
) -> None:
    """-1 is what its test splits without labels have."""
    images = [encoded(seed) for seed in range(5)]
    labels = pa.array([1, 0, 1, 0, -1], pa.int8())
    write_parquet("a.parquet", images, labels, names=["owl", "emu"], caption=list("abcde"))
    found = ingested(tmp_path)
    assert found.images.class_names == ("owl", "emu")
    assert found.examples["label"].fillna(-1).tolist() == [1, 0, 1, 0, -1]
    pq.write_table(
        pq.read_table(tmp_path / "a.parquet").rename_columns(["img", "fine", "caption"]),
        tmp_path / "a.parquet",
    )
    names = {"image_column": "img", "label_column": "fine", "class_names": ["owl", "emu"]}
    renamed = ingested(tmp_path, **names)
    assert (renamed.images.pixels == found.images.pixels).all()


def test_one_bad_row_is_rejected_alone(
    tmp_path: Path, write_parquet: Write, encoded: Encoded
) -> None:
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n"
    images = [encoded(0), encoded(1), None, b"", script, encoded(2)[:-30]]
    write_parquet("a.parquet", images, [0, 1, 0, 1, 0, 1])
    found = ingested(tmp_path)
    assert found.examples["source"].tolist() == ["a.parquet/0", "a.parquet/1"]
    no_bytes = "OSError: the row holds no bytes of an image; paths are not followed"
    assert found.rejected["reason"].tolist()[:3] == [
        no_bytes,
        no_bytes,
        "cannot identify its format",
    ]
    assert len(found.rejected) == 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_column": "img"}, r"image_column` must name a column of a.parquet, got 'img'; leg"),
        ({"label_column": "y"}, r"label_column` must name a column of a.parquet, got 'y'; legal: "),
        ({"image_column": "label"}, r"image_column` must name a column of encoded images"),
        ({"label_column": "weight"}, r"label_column` must name a column of integers or text"),
        ({"label_column": "image"}, r"label_column` must name a column of integers or text"),
    ],
)
def test_a_column_that_is_missing_or_of_another_type_is_refused(
    tmp_path: Path, write_parquet: Write, encoded: Encoded, settings: Any, message: str
) -> None:
    write_parquet("a.parquet", [encoded(0), encoded(1)], [0, 1], weight=[0.5, 0.5])
    with pytest.raises(ParameterError, match=message):
        list_parquet(source(tmp_path, **settings))


def test_numbers_in_one_file_and_names_in_another_are_refused(
    tmp_path: Path, write_parquet: Write, encoded: Encoded
) -> None:
    write_parquet("a.parquet", [encoded(0), encoded(1)], [0, 1])
    write_parquet("b.parquet", [encoded(2), encoded(3)], ["owl", "emu"])
    with pytest.raises(ParameterError, match="label_column` must name labels that are all numbers"):
        list_parquet(source(tmp_path))


def test_a_cut_file_and_one_that_is_no_parquet_are_refused_by_name(
    tmp_path: Path, write_parquet: Write, encoded: Encoded
) -> None:
    file = write_parquet("a.parquet", list(map(encoded, range(4))), [0, 1, 0, 1])
    whole = file.read_bytes()
    for damaged in (b"", b"no parquet", whole[:-1], whole[: len(whole) // 2], whole[:-200]):
        file.write_bytes(damaged)
        with pytest.raises(DataError, match=r"source.train` must be whole parquet files, got 'a.p"):
            list_parquet(source(tmp_path))


def test_a_flipped_bit_anywhere_is_refused_by_name_or_rejects_single_images(
    tmp_path: Path, write_parquet: Write, encoded: Encoded
) -> None:
    """Or it changes what no format shows: a label, a name, pixels."""
    file = write_parquet("a.parquet", list(map(encoded, range(4))), [0, 1, 0, 1], names=["a", "b"])
    whole = file.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for byte in rng.choice(len(whole), 150, replace=False):
        damaged = bytearray(whole)
        damaged[byte] ^= 1 << rng.integers(8)
        file.write_bytes(damaged)
        try:
            assert len(ingested(tmp_path).examples) <= 4
        except (DataError, ParameterError) as error:
            refused += 1
            assert "a.parquet" in str(error) or "class" in str(error), error
    assert refused > 20


def test_a_damaged_row_group_rejects_its_images_alone(
    tmp_path: Path, write_parquet: Write, encoded: Encoded
) -> None:
    file = write_parquet("a.parquet", list(map(encoded, range(6))), [0, 1, 0, 1, 0, 1])
    column = pq.ParquetFile(file).metadata.row_group(1).column(0)
    damaged = bytearray(file.read_bytes())
    start = column.dictionary_page_offset or column.data_page_offset
    damaged[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    file.write_bytes(damaged)
    found = ingested(tmp_path)
    assert found.rejected["source"].tolist() == ["a.parquet/2", "a.parquet/3"]
    for reason in found.rejected["reason"]:
        assert reason.startswith("OSError: row group 1 of a.parquet is damaged: ")
    assert len(found.examples) == 4


def test_memory_holds_two_row_groups(
    tmp_path: Path, write_parquet: Write, encoded: Encoded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Above the bound, peak memory is that of two row groups however many there are."""
    monkeypatch.setattr(sources_parquet, "KEPT_BYTES", 32 * 1024)
    noise = [encoded(seed) + bytes(30_000) for seed in range(40)]
    write_parquet("a.parquet", noise, [0, 1] * 20, row_group_size=2)
    listing = list_parquet(source(tmp_path))
    before, peak = pa.total_allocated_bytes(), 0
    for key in listing.keys:
        listing.reader(key).load()
        peak = max(peak, pa.total_allocated_bytes() - before)
    assert peak < 4 * 2 * 31_000
    assert peak > 31_000


def test_a_row_group_beyond_the_bound_is_refused(
    tmp_path: Path, write_parquet: Write, encoded: Encoded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources_parquet, "MAX_GROUP_BYTES", 2**20)
    images = [encoded(seed) + bytes(600_000) for seed in range(2)]
    write_parquet("a.parquet", images, [0, 1])
    with pytest.raises(DataError, match=r"at most 1 MiB in a row group, got 1 MiB in a.parq"):
        list_parquet(source(tmp_path))


def test_a_row_group_is_read_once_for_all_its_images(
    tmp_path: Path, write_parquet: Write, encoded: Encoded
) -> None:
    """Ids ascend as rows are stored; the file is gone after the first image of its group."""
    file = write_parquet("a.parquet", list(map(encoded, range(6))), [0, 1] * 3)
    listing = list_parquet(source(tmp_path))
    assert [key[1:] for key in listing.keys] == [(row // 2, row % 2) for row in range(6)]
    listing.reader(listing.keys[2])
    file.unlink()
    assert listing.reader(listing.keys[3]).size == (8, 8)
    for _ in range(2):
        with pytest.raises(OSError, match=r"row group 2 of a.parquet is damaged"):
            listing.reader(listing.keys[4])
