"""The store: what is written is what is read, and what does not match is refused by name."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kd_pipeline.errors import DataError, StaleArtefactError
from kd_pipeline.soft_targets import store
from kd_pipeline.soft_targets.manifest import Provenance, check_provenance
from kd_pipeline.soft_targets.store import (
    SoftTargets,
    make_soft_targets,
    read_manifest,
    read_soft_targets,
    write_soft_targets,
)

IDS = np.array([3, 10, 2**40, 2**62], dtype=np.int64)
PROVENANCE = Provenance(
    class_names=("a", "b", "c"),
    teacher_fingerprints=("t0", "t1"),
    images_fingerprint="i",
    splits_fingerprint="s",
    view_policy={"seed": 0, "transforms": [{"name": "shift", "max_pixels": 2}]},
    num_views=2,
)


def logits(scale: float = 5.0) -> np.ndarray:
    """[members, views, examples, classes]"""
    return (np.random.default_rng(0).normal(size=(2, 2, 4, 3)) * scale).astype(np.float32)


def soft_targets() -> SoftTargets:
    return make_soft_targets(logits(), IDS, provenance=PROVENANCE)


def test_a_round_trip_keeps_every_value(tmp_path: Path) -> None:
    written = soft_targets()
    write_soft_targets(written, tmp_path / "store")
    read = read_soft_targets(tmp_path / "store")
    for name in ("example_ids", "views", "teachers", "logits"):
        found, expected = getattr(read, name), getattr(written, name)
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)
    assert read.manifest.provenance == PROVENANCE
    assert read.manifest.num_rows == 16


def test_any_parquet_reader_opens_it_and_finds_what_it_was_made_from(tmp_path: Path) -> None:
    write_soft_targets(soft_targets(), tmp_path / "store")
    path = tmp_path / "store" / "part-00000.parquet"
    frame = pd.read_parquet(path)
    assert list(frame.columns) == ["example_id", "view", "teacher", "logits"]
    np.testing.assert_array_equal(frame["logits"].iloc[5], logits()[0, 1, 1].astype(np.float16))
    schema = pq.read_schema(path)
    assert schema.field("logits").type == pa.list_(pa.float16(), 3)
    assert [str(schema.field(n).type) for n in ("example_id", "view", "teacher")] == [
        "int64",
        "int16",
        "int16",
    ]
    assert json.loads(schema.metadata[store.FORMAT.encode()])["class_names"] == ["a", "b", "c"]


def test_logits_are_found_by_example_and_view_whatever_the_order() -> None:
    found = soft_targets().of_examples(IDS[[2, 0]])
    assert found.shape == (2, 2, 3)
    expected = logits()[:, :, [2, 0]].astype(np.float16).astype(np.float32).mean(axis=0)
    np.testing.assert_allclose(found, expected.swapaxes(0, 1), atol=1e-2)


def test_an_ensemble_mixes_as_the_geometric_mean_at_every_temperature() -> None:
    def softmax(values: np.ndarray) -> np.ndarray:
        exponentials = np.exp(values - values.max(-1, keepdims=True))
        return exponentials / exponentials.sum(-1, keepdims=True)

    mixed = soft_targets().of_examples(IDS).astype(np.float64)
    members = logits().astype(np.float16).astype(np.float64).swapaxes(1, 2)
    for temperature in (1.0, 4.0):
        geometric = np.exp(np.log(softmax(members / temperature)).mean(axis=0))
        geometric /= geometric.sum(-1, keepdims=True)
        np.testing.assert_allclose(softmax(mixed / temperature), geometric, atol=2e-3)


def test_an_example_without_soft_targets_is_named() -> None:
    with pytest.raises(DataError, match=r"have no row for 1 examples, first \[4\]"):
        soft_targets().of_examples(np.array([3, 4]))


@pytest.mark.parametrize("value", [np.nan, np.inf, 70_000.0])
def test_logits_that_float16_cannot_hold_are_refused(value: float) -> None:
    bad = logits()
    bad[1, 0, 2, 1] = value
    with pytest.raises(DataError, match="must be finite and within ±65504"):
        make_soft_targets(bad, IDS, provenance=PROVENANCE)


def test_many_parts_read_back_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "ROWS_PER_PART", 5)
    write_soft_targets(soft_targets(), tmp_path / "store")
    manifest = read_manifest(tmp_path / "store")
    assert [part["num_rows"] for part in manifest.parts] == [5, 5, 5, 1]
    np.testing.assert_array_equal(
        read_soft_targets(tmp_path / "store").logits, soft_targets().logits
    )


def test_writing_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("first", "second"):
        write_soft_targets(soft_targets(), tmp_path / name)
    for file in ("part-00000.parquet", "manifest.json"):
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes()


def test_an_interrupted_write_leaves_the_old_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "store"
    write_soft_targets(soft_targets(), folder)
    before = (folder / "manifest.json").read_bytes()

    def fail(*_: Any, **__: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(pq, "write_table", fail)
    with pytest.raises(OSError, match="disk full"):
        write_soft_targets(soft_targets(), folder)
    assert (folder / "manifest.json").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_a_damaged_or_missing_part_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    write_soft_targets(soft_targets(), folder)
    part = folder / "part-00000.parquet"
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 1
    part.write_bytes(data)
    with pytest.raises(StaleArtefactError, match=r"part .*part-00000.parquet is damaged"):
        read_soft_targets(folder)
    part.unlink()
    with pytest.raises(StaleArtefactError, match=r"miss their part .*part-00000.parquet"):
        read_soft_targets(folder)


def test_a_store_without_a_manifest_is_unfinished(tmp_path: Path) -> None:
    with pytest.raises(StaleArtefactError, match="no finished soft targets in"):
        read_soft_targets(tmp_path)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("teacher_fingerprints", ("t0", "t9"), "this run's teacher"),
        ("images_fingerprint", "j", "this run's images"),
        ("splits_fingerprint", "z", "this run's splits"),
        ("view_policy", {"seed": 0, "transforms": []}, "this run's view policy"),
        ("num_views", 3, "this run's number of views"),
        ("class_names", ("a", "c", "b"), "this run's class names"),
    ],
)
def test_a_cache_of_something_else_is_refused_saying_which(
    field: str, value: object, message: str
) -> None:
    expected = vars(PROVENANCE) | {field: value}
    with pytest.raises(StaleArtefactError, match=message) as caught:
        check_provenance(PROVENANCE, **expected)
    assert str(caught.value).count("cached") == 1
    assert "--pipelines=soft_target_caching" in str(caught.value)


def test_a_matching_cache_is_accepted() -> None:
    check_provenance(PROVENANCE, **vars(replace(PROVENANCE)))


def test_bytes_per_row_stay_within_the_best_caches(tmp_path: Path) -> None:
    """20.9 bytes at 10 classes (shared anchors): the bound is 22 on logits of every value."""
    rng = np.random.default_rng(0)
    count = 20_000
    values = rng.normal(size=(1, 1, count, 10)).astype(np.float32) * 5
    provenance = replace(
        PROVENANCE, class_names=tuple("abcdefghij"), teacher_fingerprints=("t",), num_views=1
    )
    made = make_soft_targets(values, np.arange(count), provenance=provenance)
    write_soft_targets(made, tmp_path / "store")
    size = sum(part["size_bytes"] for part in read_manifest(tmp_path / "store").parts)
    assert size / count < 22
