"""The store: what is written is what is read, in any reader, with the same bytes every time."""

import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from kd_pipeline.errors import DataError, ParameterError, StaleArtefactError
from kd_pipeline.soft_targets import store as store_module
from kd_pipeline.soft_targets.encoding import Encoding
from kd_pipeline.soft_targets.manifest import FORMAT, Manifest, Provenance
from kd_pipeline.soft_targets.store import (
    PART_MIB,
    SoftTargets,
    check_store,
    plan_store,
    read_manifest,
    read_soft_targets,
    rows_within_budget,
    write_soft_targets,
)

IDS = np.array([3, 10, 77, 2**40, 2**62], dtype=np.int64)


def test_a_round_trip_keeps_every_value(store: SoftTargets, logits: NDArray[np.float32]) -> None:
    read = read_soft_targets(store.folder)
    check_store(read)
    assert read.manifest == store.manifest
    assert read.manifest.num_rows == 20
    for member in range(2):
        for view in range(2):
            parts = list(read.parts(member, view))
            assert [len(part.example_ids) for part in parts] == [2, 2, 1]
            assert {(part.member, part.view) for part in parts} == {(member, view)}
            np.testing.assert_array_equal(np.concatenate([p.example_ids for p in parts]), IDS)
            stored = np.concatenate([p.rows.logits for p in parts])
            assert stored.dtype == np.float16
            np.testing.assert_array_equal(stored, logits[member, view].astype(np.float16))


def test_rows_come_in_order_and_ids_are_known(store: SoftTargets) -> None:
    places = [(part.member, part.view, int(part.example_ids[0])) for part in store.parts()]
    assert places == sorted(places)
    assert len(places) == 12
    assert [int(p.example_ids[0]) for p in store.parts(shard=1)] == [77] * 4
    np.testing.assert_array_equal(store.example_ids, IDS)


def test_top_k_keeps_the_largest_logits_and_their_classes(
    tmp_path: Path, logits: NDArray[np.float32], store: SoftTargets
) -> None:
    made = write_soft_targets(
        tmp_path / "top",
        logits,
        IDS,
        provenance=store.manifest.provenance,
        encoding=Encoding(top_k=2, temperature=4.0),
    )
    part = next(read_soft_targets(made.folder).parts(member=1, view=0))
    assert part.rows.class_ids is not None
    assert part.rows.class_ids.dtype == np.uint16
    best = np.sort(np.argsort(-logits[1, 0], axis=1)[:, :2], axis=1)
    np.testing.assert_array_equal(part.rows.class_ids, best)
    expected = np.take_along_axis(logits[1, 0], best, axis=1).astype(np.float16)
    np.testing.assert_array_equal(part.rows.logits, expected)


@pytest.mark.parametrize("top_k", [None, 2])
def test_any_parquet_reader_opens_it_and_finds_what_it_was_made_from(
    tmp_path: Path, logits: NDArray[np.float32], store: SoftTargets, top_k: int | None
) -> None:
    provenance = store.manifest.provenance
    encoding = Encoding() if top_k is None else Encoding(top_k, 2.0)
    made = write_soft_targets(
        tmp_path / "one", logits, IDS, provenance=provenance, encoding=encoding
    )
    path = made.folder / made.manifest.parts[1].file
    assert path.name == "part-t000-v00001-s00000.parquet"
    schema = pq.read_schema(path)
    types = {"example_id": "int64", "view": "int16", "teacher": "int16"}
    types |= {"logits": f"fixed_size_list<element: halffloat not null>[{top_k or 4}]"}
    if top_k is not None:
        types |= {"class_ids": "fixed_size_list<element: uint16 not null>[2]"}
        types |= {"tail_logit": "halffloat"}
    assert {field.name: str(field.type) for field in schema} == types
    assert not any(field.nullable for field in schema)
    head = json.loads(pq.read_metadata(path).metadata[FORMAT.encode()])
    assert head["provenance"]["class_names"] == ["a", "b", "c", "d"]
    assert (head["member"], head["view"], head["shard"]) == (0, 1, 0)
    frame = pd.read_parquet(path)
    assert frame["example_id"].tolist() == IDS.tolist()
    if top_k is None:
        row = np.stack(frame["logits"].tolist())[3]
        np.testing.assert_array_equal(row, logits[0, 1, 3].astype(np.float16))


def test_row_groups_are_small_enough_to_stream(tmp_path: Path) -> None:
    count = 20_000
    provenance = Provenance(("a", "b"), ("t",), "i", "s", {}, 1)
    made = write_soft_targets(
        tmp_path / "s", np.zeros((1, 1, count, 2), np.float32), np.arange(count),
        provenance=provenance,
    )  # fmt: skip
    file = pq.ParquetFile(made.folder / made.manifest.parts[0].file)
    groups = [file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)]
    assert groups == [8192, 8192, 3616]


def test_writing_twice_gives_the_same_bytes(tmp_path: Path, write_store: Any) -> None:
    first, second = (write_store(tmp_path / name).folder for name in ("first", "second"))
    names = sorted(path.name for path in first.iterdir())
    assert len(names) == 13
    assert names == sorted(path.name for path in second.iterdir())
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_the_manifest_reads_back_as_it_was_written(store: SoftTargets) -> None:
    text = (store.folder / "manifest.json").read_text()
    assert Manifest.from_text(text).as_text() == text
    head = json.loads(text)
    assert head["dtype"] == "float16"
    assert head["num_rows"] == 20
    assert [part["file"] for part in head["parts"]] == [part.file for part in store.manifest.parts]
    # The same logits must give the same bytes, whenever and wherever.
    assert not {"created", "seconds", "host", "date"} & head.keys()


def test_facts_are_kept_with_the_store(
    tmp_path: Path, logits: NDArray[np.float32], store: SoftTargets
) -> None:
    facts = {"precision": "bfloat16"}
    made = write_soft_targets(
        tmp_path / "s", logits, IDS, provenance=store.manifest.provenance, facts=facts
    )
    assert read_manifest(made.folder).facts == facts


def test_an_interrupted_write_leaves_the_old_store(
    store: SoftTargets, monkeypatch: pytest.MonkeyPatch, write_store: Any
) -> None:
    before = (store.folder / "manifest.json").read_bytes()

    def fail(*_: Any, **__: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(store_module, "write_manifest", fail)
    with pytest.raises(OSError, match="disk full"):
        write_store(store.folder, seed=1)
    assert (store.folder / "manifest.json").read_bytes() == before
    assert [path.name for path in store.folder.parent.iterdir()] == ["store"]
    check_store(read_soft_targets(store.folder))


def test_a_store_without_a_manifest_is_unfinished(tmp_path: Path) -> None:
    with pytest.raises(StaleArtefactError, match=r"no finished .*manifest\.json is missing.*kedro"):
        read_soft_targets(tmp_path)


@pytest.mark.parametrize("ids", [[], [1, 1], [2, 1]])
def test_ids_that_do_not_ascend_are_refused(ids: list[int], store: SoftTargets) -> None:
    with pytest.raises(DataError, match=r"^`example_ids` must be ascending and at least one$"):
        plan_store(
            np.array(ids, dtype=np.int64),
            provenance=store.manifest.provenance,
            encoding=Encoding(),
            facts={},
            rows_per_part=2,
        )


def test_a_logit_that_cannot_be_stored_is_named_by_its_place(
    tmp_path: Path, logits: NDArray[np.float32], store: SoftTargets
) -> None:
    broken = logits.copy()
    broken[1, 0, 2, 3] = np.inf
    message = r"got inf for class 3 of example 77 in view 0 by teacher 1$"
    with pytest.raises(DataError, match=message):
        write_soft_targets(tmp_path / "s", broken, IDS, provenance=store.manifest.provenance)
    broken = logits.copy()
    broken[0, 1, 2, 3] = np.inf
    with pytest.raises(DataError, match=r"in view 1 by teacher 0$"):
        write_soft_targets(tmp_path / "s", broken, IDS, provenance=store.manifest.provenance)


def test_an_encoding_that_cannot_hold_the_classes_is_refused(
    tmp_path: Path, store: SoftTargets
) -> None:
    provenance, encoding = store.manifest.provenance, Encoding(top_k=4, temperature=2.0)
    with pytest.raises(ParameterError, match=r"`soft_target_caching\.top_k` must"):
        write_soft_targets(tmp_path / "bad", [], IDS, provenance=provenance, encoding=encoding)
    assert not (tmp_path / "bad").exists()


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"teacher": ["t0", "t9"]}, "teacher (artefact ['t0', 't1'], this run ['t0', 't9'])"),
        ({"images": "j"}, "images (artefact i, this run j)"),
        ({"view_policy": {"seed": 0, "transforms": []}}, "view policy"),
        ({"num_views": 3, "splits": "z"}, "splits (artefact s, this run z) and number of views"),
    ],
)
def test_a_cache_of_something_else_is_refused_with_what_differs(
    store: SoftTargets, changes: dict[str, Any], what: str
) -> None:
    facts = store.manifest.provenance.facts()
    store.check(facts)
    with pytest.raises(StaleArtefactError) as caught:
        store.check(facts | changes)
    assert f"`soft_targets` do not match this run's {what}" in str(caught.value)
    assert "kedro run --pipelines=soft_target_caching" in str(caught.value)
    with pytest.raises(StaleArtefactError, match=r"`assistant\.soft_targets` do not match"):
        store.check(facts | changes, name="assistant.soft_targets")


def test_reading_of_facts_and_manifest_costs_no_part(
    store: SoftTargets, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("a part was read")

    monkeypatch.setattr(store_module, "read_part", fail)
    assert read_manifest(store.folder) == read_soft_targets(store.folder).manifest


def test_bytes_per_row_stay_within_the_best_caches(tmp_path: Path) -> None:
    """20.9 bytes at 10 classes (shared anchors): the bound is 22. Real logits: bench.cache_size."""
    rng = np.random.default_rng(0)
    count = 20_000
    values = rng.normal(size=(1, 1, count, 10)).astype(np.float32) * 5
    provenance = Provenance(tuple("abcdefghij"), ("t",), "i", "s", {}, 1)
    made = write_soft_targets(tmp_path / "s", values, np.arange(count), provenance=provenance)
    assert sum(path.stat().st_size for path in made.folder.iterdir()) / count < 22


def test_a_part_is_found_by_its_place(store: SoftTargets) -> None:
    everything = [(part.member, part.view) for part in store.parts()]
    assert everything == sorted(everything)
    assert len(everything) == 12
    for place in product(range(2), range(2), range(3)):
        member, view, shard = place
        (found,) = store.parts(member=member, view=view, shard=shard)
        assert (found.member, found.view) == place[:2]
        np.testing.assert_array_equal(found.example_ids, IDS[2 * shard : 2 * shard + 2])
    assert list(store.parts(member=2)) == []


def test_rows_of_a_part_follow_from_the_number_of_classes_alone() -> None:
    assert rows_within_budget(10) == rows_within_budget(256) == 65_536
    assert rows_within_budget(1000) == 16_384
    assert rows_within_budget(21_841) == 768
    assert rows_within_budget(16_384) == 1024
    for num_classes in (257, 1000, 65_535):
        assert rows_within_budget(num_classes) * num_classes * 4 <= PART_MIB * 2**20
