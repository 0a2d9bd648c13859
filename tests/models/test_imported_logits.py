"""Logits computed elsewhere: read without unpickling, checked, found by example id."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from kd_pipeline.errors import CheckpointError, DataError, ParameterError, StaleArtefactError
from kd_pipeline.models.checkpoint import (
    ModelCheckpoint,
    build_classifier,
    read_checkpoint,
    write_checkpoint,
)
from kd_pipeline.models.given import with_classes_of
from kd_pipeline.models.imported_logits import (
    ImportedLogits,
    check_covers,
    covers,
    imported_checkpoint,
    read_logits,
)

IDS = np.array([8, 2, 5], dtype=np.int64)
LOGITS = np.array([[8.0, 0.5], [2.0, -1.0], [5.0, 70_000.0]], dtype=np.float32)
NAME = "teacher.given[0]"


def as_npz(file: Path, **changes: Any) -> Path:
    arrays = {"example_ids": IDS, "logits": LOGITS, "class_names": np.array(["cat", "dog"])}
    np.savez(file, **{k: v for k, v in (arrays | changes).items() if v is not None})
    return file


def checkpoint() -> ModelCheckpoint:
    order = np.argsort(IDS)
    return imported_checkpoint(
        IDS[order],
        LOGITS[order],
        class_names=("cat", "dog"),
        shape=(1, 4, 4),
        images_fingerprint="images",
        facts={},
    )


def test_an_npz_is_sorted_by_id(tmp_path: Path) -> None:
    ids, logits, names = read_logits(as_npz(tmp_path / "l.npz"), name=NAME)
    assert ids.tolist() == [2, 5, 8]
    np.testing.assert_array_equal(logits, LOGITS[[1, 2, 0]])
    assert names == [["cat", "dog"]]


@pytest.mark.parametrize("kind", [pa.list_(pa.float32()), pa.list_(pa.float16(), 2)])
def test_a_parquet_with_a_list_per_row(tmp_path: Path, kind: pa.DataType) -> None:
    logits = np.clip(LOGITS, -100, 100)
    rows = pa.array([list(map(np.float16, row)) for row in logits], type=kind)
    pq.write_table(pa.table({"example_id": IDS, "logits": rows}), tmp_path / "l.parquet")
    ids, read, names = read_logits(tmp_path / "l.parquet", name=NAME)
    assert ids.tolist() == [2, 5, 8]
    np.testing.assert_array_equal(read, logits[[1, 2, 0]])
    assert names == []


def test_a_parquet_with_a_column_per_class_names_the_classes(tmp_path: Path) -> None:
    columns = {"example_id": IDS, "dog": LOGITS[:, 1], "cat": LOGITS[:, 0]}
    pq.write_table(pa.table(columns), tmp_path / "l.parquet")
    _, logits, names = read_logits(tmp_path / "l.parquet", name=NAME)
    assert names == [["dog", "cat"]]
    np.testing.assert_array_equal(logits, LOGITS[[1, 2, 0]][:, ::-1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"example_ids": IDS.astype(np.int32)}, "must have int64 example ids, got int32"),
        ({"example_ids": np.array([2, 5, 2])}, "each example id once, got 2 2 times"),
        ({"logits": LOGITS[:2]}, r"float logits of shape \(3, num_classes\)"),
        ({"logits": LOGITS.astype(np.int64)}, "float logits"),
        ({"logits": np.array([[1, np.nan], [1, 1], [1, 1.0]])}, r"NaN or infinity for \[8\]"),
        ({"logits": np.array([[0.9, 0.1], [0.5, 0.5], [1, 0.0]])}, "got probabilities"),
        ({"logits": None}, "holds no logits with ids"),
        ({"example_ids": np.array([{"a": 1}], dtype=object)}, "allow_pickle=False"),
    ],
)
def test_what_are_no_logits_with_ids_is_refused(tmp_path: Path, changes: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_logits(as_npz(tmp_path / "l.npz", **changes), name=NAME)


def test_a_damaged_or_missing_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "l.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(DataError, match="holds no logits with ids"):
        read_logits(tmp_path / "l.parquet", name=NAME)
    with pytest.raises(ParameterError, match=r"given\[0\]\.file` must be an existing file"):
        read_logits(tmp_path / "none.npz", name=NAME)


def test_logits_are_found_by_id_in_any_order_and_travel_as_a_checkpoint(tmp_path: Path) -> None:
    write_checkpoint(checkpoint(), tmp_path / "kept")
    kept = read_checkpoint(tmp_path / "kept")
    predictor = ImportedLogits(kept, images_fingerprint="images")
    found = predictor.logits(np.array([8, 5, 8]))
    assert torch.equal(found, torch.from_numpy(LOGITS[[0, 2, 0]]))
    found[0] = 0.0
    assert torch.equal(predictor.logits(np.array([8])), torch.from_numpy(LOGITS[:1]))


def test_logits_follow_the_order_of_the_classes() -> None:
    swapped = with_classes_of(checkpoint(), ("dog", "cat"), name=NAME)
    predictor = ImportedLogits(swapped, images_fingerprint="images")
    assert torch.equal(predictor.logits(IDS), torch.from_numpy(LOGITS[:, ::-1].copy()))
    back = with_classes_of(swapped, ("cat", "dog"), name=NAME)
    predictor = ImportedLogits(back, images_fingerprint="images")
    assert torch.equal(predictor.logits(IDS), torch.from_numpy(LOGITS))


def test_examples_without_logits_are_refused_by_number_and_name() -> None:
    assert covers(checkpoint(), np.array([2, 8]))
    assert not covers(checkpoint(), np.array([2, 3]))
    with pytest.raises(DataError, match=r"cover the transfer set, got 1 of 2 .* first \[3\]"):
        check_covers(checkpoint(), np.array([2, 3]), what="the transfer set")
    predictor = ImportedLogits(checkpoint(), images_fingerprint="images")
    with pytest.raises(DataError, match="every example of `test: teacher`"):
        predictor.logits(np.array([99]), description="test: teacher")
    with pytest.raises(DataError, match="only the clean view 0, got view 1"):
        predictor.logits(IDS, view=1)


def test_ids_of_other_images_mean_other_examples() -> None:
    with pytest.raises(StaleArtefactError, match="imported for other images"):
        ImportedLogits(checkpoint(), images_fingerprint="others")


def test_there_is_no_model_in_them() -> None:
    with pytest.raises(CheckpointError, match="no model that could see an image"):
        build_classifier(checkpoint())
