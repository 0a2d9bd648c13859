"""Logits computed elsewhere: read without unpickling, checked, found by example id."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kd_pipeline.errors import DataError, ParameterError
from kd_pipeline.soft_targets.imported import Declared, ImportedLogits, read_imported_logits

IDS = np.array([8, 2, 5], dtype=np.int64)
LOGITS = np.array([[8.0, 0.5], [2.0, -1.0], [5.0, 70_000.0]], dtype=np.float32)
NAMES = ("cat", "dog")


def as_npz(file: Path, **changes: Any) -> Path:
    arrays = {"example_ids": IDS, "logits": LOGITS, "class_names": np.array(["cat", "dog"])}
    np.savez(file, **{k: v for k, v in (arrays | changes).items() if v is not None})
    return file


def by_name(declared: Declared) -> Sequence[int] | None:
    """Columns by name; in the images' order where the file has no names."""
    return [list(declared[0]).index(name) for name in NAMES] if declared else None


def read(file: Path) -> ImportedLogits:
    return read_imported_logits(file, class_names=NAMES, order_of=by_name, name="teacher.given[0]")


def imported() -> ImportedLogits:
    order = np.argsort(IDS)
    return ImportedLogits(IDS[order], LOGITS[order], NAMES)


def test_an_npz_is_sorted_by_id(tmp_path: Path) -> None:
    found = read(as_npz(tmp_path / "l.npz"))
    assert found.example_ids.tolist() == [2, 5, 8]
    np.testing.assert_array_equal(found.logits, LOGITS[[1, 2, 0]])
    assert found.fingerprint == imported().fingerprint


def test_columns_follow_the_order_of_the_images_classes(tmp_path: Path) -> None:
    swapped = {"class_names": np.array(["dog", "cat"]), "logits": LOGITS[:, ::-1]}
    assert read(as_npz(tmp_path / "l.npz", **swapped)).fingerprint == imported().fingerprint


@pytest.mark.parametrize("kind", [pa.list_(pa.float32()), pa.list_(pa.float16(), 2)])
def test_a_parquet_with_a_list_per_row(tmp_path: Path, kind: pa.DataType) -> None:
    logits = np.clip(LOGITS, -100, 100)
    rows = pa.array([list(map(np.float16, row)) for row in logits], type=kind)
    pq.write_table(pa.table({"example_id": IDS, "logits": rows}), tmp_path / "l.parquet")
    found = read(tmp_path / "l.parquet")
    assert found.example_ids.tolist() == [2, 5, 8]
    np.testing.assert_array_equal(found.logits, logits[[1, 2, 0]])


def test_a_parquet_with_lists_of_unequal_length_is_refused(tmp_path: Path) -> None:
    rows = [[1.0] * length for length in (2, 1, 3, 4)]
    pq.write_table(pa.table({"example_id": range(4), "logits": rows}), tmp_path / "l.parquet")
    with pytest.raises(DataError, match=r"lists of one length, got \[2, 1, 3\]"):
        read(tmp_path / "l.parquet")


def test_a_parquet_with_a_column_per_class_names_the_classes(tmp_path: Path) -> None:
    columns = {"example_id": IDS, "dog": LOGITS[:, 1], "cat": LOGITS[:, 0]}
    pq.write_table(pa.table(columns), tmp_path / "l.parquet")
    np.testing.assert_array_equal(read(tmp_path / "l.parquet").logits, LOGITS[[1, 2, 0]])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"example_ids": IDS.astype(np.int32)}, "must have int64 example ids, got int32"),
        (
            {"example_ids": np.array([[8], [2], [5]])},
            r"must have int64 example ids, got int64 \(3, 1",
        ),
        ({"example_ids": np.array([2, 5, 2])}, "each example id once, got 2 2 times$"),
        ({"logits": LOGITS[:2]}, r"float logits of shape \(3, num_classes\)"),
        ({"logits": LOGITS.astype(np.int64)}, "float logits"),
        ({"logits": np.array([[1, np.nan], [1, 1], [1, 1.0]])}, r"NaN or infinity for \[8\]$"),
        ({"logits": np.full((3, 2), 1e39)}, r"infinity for \[8, 2, 5\]$"),
        ({"logits": np.array([[-1e39, 1], [1, 1], [1, 1.0]])}, r"infinity for \[8\]$"),
        ({"logits": np.array([0.5, 0.25, 1])}, r"\(3, num_classes\), got float64 \(3,\)$"),
        ({"logits": np.array([[0.9, 0.1], [0.5, 0.5], [1, 0.0]])}, "got probabilities"),
        ({"logits": np.eye(3) * 5, "class_names": None}, "3 logits where the images have 2 class"),
        ({"logits": None}, "holds no logits with ids"),
        ({"example_ids": np.array([{"a": 1}], dtype=object)}, "allow_pickle=False"),
    ],
)
def test_what_are_no_logits_with_ids_is_refused(tmp_path: Path, changes: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(as_npz(tmp_path / "l.npz", **changes))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_cut_or_altered_npz_is_refused_by_its_name(tmp_path: Path, save: Any) -> None:
    file, rng = tmp_path / "l.npz", np.random.default_rng(0)
    save(file, example_ids=IDS, logits=LOGITS)
    whole = file.read_bytes()
    for position in range(0, len(whole), 3):
        altered = bytearray(whole)
        altered[position] ^= 1 << int(rng.integers(8))
        for content in (whole[:position], altered):
            file.write_bytes(content)
            try:
                read(file)
            except DataError as error:
                assert "teacher.given[0]" in str(error)


def test_a_damaged_or_missing_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "l.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(DataError, match="holds no logits with ids"):
        read(tmp_path / "l.parquet")
    with pytest.raises(ParameterError, match=r"given\[0\]\.file` must be an existing .*none.npz'$"):
        read(tmp_path / "none.npz")


def test_rows_are_found_by_id_in_any_order_and_are_a_copy() -> None:
    made = imported()
    found = made.rows(np.array([8, 5, 8]))
    np.testing.assert_array_equal(found, LOGITS[[0, 2, 0]])
    found[0] = 0.0
    np.testing.assert_array_equal(made.rows(np.array([8])), LOGITS[:1])


def test_examples_without_logits_are_refused_by_number_and_name() -> None:
    made = imported()
    assert made.covers(np.array([2, 8]))
    assert not made.covers(np.array([2, 3]))
    message = (
        "^the imported logits must cover the transfer set, got 4 of 5 examples without logits, "
        r"first \[3, 7, 4\]$"
    )
    with pytest.raises(DataError, match=message):
        made.check_covers(np.array([3, 2, 7, 4, 9]), what="the transfer set")
    with pytest.raises(DataError, match="must cover every example asked for, got 1 of 1"):
        made.rows(np.array([99]))


def test_the_id_that_comes_most_often_is_named(tmp_path: Path) -> None:
    ids = np.array([2, 5, 2, 5, 5])
    file = as_npz(tmp_path / "l.npz", example_ids=ids, logits=np.ones((5, 2)))
    with pytest.raises(DataError, match=r"each example id once, got 5 3 times$"):
        read(file)


@pytest.mark.parametrize(("total", "is_refused"), [(1.0005, True), (0.9995, True), (1.01, False)])
def test_rows_that_sum_to_one_are_probabilities(
    tmp_path: Path, total: float, is_refused: bool
) -> None:
    file = as_npz(tmp_path / "l.npz", logits=np.array([[total, 0], [0.5, 0.5], [0.25, 0.75]]))
    if is_refused:
        message = (
            r"^`teacher.given\[0\]` must have logits, got probabilities that sum to 1: save what "
            "goes into the softmax, or the logarithm of what comes out of it$"
        )
        with pytest.raises(DataError, match=message):
            read(file)
    else:
        assert len(read(file).example_ids) == 3


def test_the_largest_float32_is_kept_and_the_first_ids_beyond_it_are_named(tmp_path: Path) -> None:
    logits = np.full((4, 2), float(np.finfo(np.float32).max))
    ids = np.arange(4)
    made = read(as_npz(tmp_path / "l.npz", example_ids=ids, logits=logits))
    assert made.logits.tolist() == logits.tolist()
    assert made.logits.dtype == np.float32
    file = as_npz(tmp_path / "l.npz", example_ids=ids, logits=logits * 2)
    with pytest.raises(DataError, match=r"infinity for \[0, 1, 2\]$"):
        read(file)


def test_a_sum_of_halves_may_be_more_than_they_can_hold(tmp_path: Path) -> None:
    logits = np.full((3, 2), 60_000, dtype=np.float16)
    assert read(as_npz(tmp_path / "l.npz", logits=logits)).logits.tolist() == logits.tolist()


def test_a_parquet_with_lists_may_name_the_classes_in_its_metadata(tmp_path: Path) -> None:
    table = pa.table({"example_id": IDS, "logits": LOGITS[:, ::-1].tolist()})
    named = table.replace_schema_metadata({"class_names": '["dog", "cat"]'})
    pq.write_table(named, tmp_path / "l.parquet")
    np.testing.assert_array_equal(read(tmp_path / "l.parquet").logits, LOGITS[[1, 2, 0]])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[1.0, 2.0], None, [3.0, 4.0]], "lists of one length, got"),
        ([None] * 3, r"lists of one length, got \[None\]"),
        ([[1.0, 2.0], [None, 1.0], [3.0, 4.0]], r"NaN or infinity for \[2\]"),
    ],
)
def test_a_parquet_with_missing_logits_is_refused(
    tmp_path: Path, rows: list[Any], message: str
) -> None:
    column = pa.array(rows, type=pa.list_(pa.float64()))
    pq.write_table(pa.table({"example_id": IDS, "logits": column}), tmp_path / "l.parquet")
    with pytest.raises(DataError, match=message):
        read(tmp_path / "l.parquet")


def test_a_file_without_rows_covers_nothing(tmp_path: Path) -> None:
    made = read(as_npz(tmp_path / "l.npz", example_ids=IDS[:0], logits=LOGITS[:0]))
    with pytest.raises(DataError, match=r"cover the transfer set, got 1 of 1"):
        made.check_covers(IDS[:1], what="the transfer set")


def test_other_ids_logits_or_classes_are_another_teacher() -> None:
    one = imported()
    content = json.dumps(NAMES).encode() + np.array([2, 5, 8], "<i8").tobytes()
    content += LOGITS[[1, 2, 0]].astype("<f4").tobytes()
    assert one.fingerprint == hashlib.sha256(content).hexdigest()[:16]
    others = [
        ImportedLogits(one.example_ids + 1, one.logits, NAMES),
        ImportedLogits(one.example_ids, one.logits + 1, NAMES),
        ImportedLogits(one.example_ids, one.logits, ("dog", "cat")),
    ]
    assert len({made.fingerprint for made in (one, *others)}) == 4
