"""One part: a file whose head and checksum are right, but not its rows, is refused."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from kd_pipeline.errors import StaleArtefactError
from kd_pipeline.soft_targets.manifest import FORMAT, Part, Provenance
from kd_pipeline.soft_targets.parts import part_problem, read_head, read_part, recover_part
from kd_pipeline.soft_targets.store import SoftTargets, write_soft_targets

FILE = "part-t001-v00000-s00001.parquet"
IDS = [77, 2**40]


def changed(column: str, values: pa.Array) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        at = table.column_names.index(column)
        field = pa.field(column, values.type, nullable=False)
        return table.set_column(at, field, values)

    return change


def as_float32(table: pa.Table) -> pa.Table:
    kind = pa.list_(pa.field("element", pa.float32(), nullable=False), 4)
    return changed("logits", pa.array(table["logits"].to_pylist(), kind))(table)


def rewritten(store: SoftTargets, change: Callable[[pa.Table], pa.Table]) -> Part:
    """A part with other rows, which keeps its head; as an interrupted run leaves it."""
    (part,) = (part for part in store.manifest.parts if part.file == FILE)
    path = store.folder / FILE
    head = {FORMAT: pq.read_metadata(path).metadata[FORMAT.encode()]}
    table = change(pq.read_table(path).replace_schema_metadata(None))
    with pq.ParquetWriter(path, table.schema, write_page_checksum=True) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata(head)
    return replace(part, size_bytes=0, sha256="")


def test_a_part_that_is_written_again_with_the_same_rows_is_read(store: SoftTargets) -> None:
    before = next(store.parts(member=1, view=0, shard=1))
    part = rewritten(store, lambda table: table)
    found = read_part(store.folder, part, store.manifest)
    assert found.example_ids.tolist() == before.example_ids.tolist() == IDS
    assert found.rows.logits.tolist() == before.rows.logits.tolist()


@pytest.mark.parametrize(
    "change",
    [
        changed("teacher", pa.array([1, 0], pa.int16())),
        changed("view", pa.array([0, 1], pa.int16())),
        changed("example_id", pa.array(IDS[::-1])),
        changed("example_id", pa.array(IDS[:1] * 2)),
    ],
    ids=["member", "view", "order", "twice"],
)
def test_rows_of_another_place_or_unsorted_are_refused(
    store: SoftTargets, change: Callable[[pa.Table], pa.Table]
) -> None:
    part = rewritten(store, change)
    message = f"^{FILE} holds rows of another member or view, or unsorted$"
    with pytest.raises(StaleArtefactError, match=message):
        read_part(store.folder, part, store.manifest)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.slice(1), "it has 1 rows, not 2"),
        (lambda table: table.drop_columns("view"), r"it has the columns \['example_id', 'teacher'"),
        (lambda table: table.append_column("x", pc.add(table["view"], 1)), "it has the columns"),
        (as_float32, r"it has the columns .* or other types of them"),
    ],
    ids=["rows", "missing", "more", "type"],
)
def test_a_part_of_other_rows_or_columns_is_damaged(
    store: SoftTargets, change: Callable[[pa.Table], pa.Table], message: str
) -> None:
    part = rewritten(store, change)
    for read in (read_part, recover_part):
        with pytest.raises(StaleArtefactError, match=f"^{FILE} is damaged: {message}"):
            read(store.folder, part, store.manifest)


def test_a_part_of_several_row_groups_is_read_whole(tmp_path: Path) -> None:
    ids, provenance = np.arange(20_000), Provenance(("a", "b"), ("t",), "i", "s", {}, 1)
    logits = np.random.default_rng(0).normal(size=(1, 1, 20_000, 2)).astype(np.float32)
    made = write_soft_targets(tmp_path / "s", logits, ids, provenance=provenance)
    (part,) = made.parts()
    np.testing.assert_array_equal(part.example_ids, ids)
    np.testing.assert_array_equal(part.rows.logits, logits[0, 0].astype(np.float16))


def test_what_is_wrong_with_a_part_is_found_by_its_size(store: SoftTargets) -> None:
    part, manifest = store.manifest.parts[0], store.manifest
    assert part_problem(store.folder, part, manifest, part.size_bytes) is None
    assert part_problem(store.folder, part, manifest, None) == f"{part.file} is missing"
    size = part.size_bytes + 1
    wanted = f"{part.file} is damaged: it has {size} bytes instead of {part.size_bytes}"
    assert part_problem(store.folder, part, manifest, size) == wanted


def test_a_file_without_a_head_has_none(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1]}), tmp_path / "other.parquet")
    (tmp_path / "text").write_text("no parquet")
    assert [read_head(tmp_path / name) for name in ("other.parquet", "text", "none")] == [None] * 3
