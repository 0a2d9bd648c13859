"""What a cache took to make: kept with each part, however often it is used again."""

from dataclasses import replace
from pathlib import Path

import pytest

from kd_pipeline.soft_targets.manifest import Part
from kd_pipeline.soft_targets.seconds import add_seconds, keep_seconds, total_seconds

PARTS = [Part(0, view, 0, num_rows=2, sha256=f"{view}" * 64) for view in range(3)]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """It need not exist: what is noted lies beside it."""
    return tmp_path / "later" / "data" / "store"


def test_the_total_is_that_of_all_parts_or_unknown(store: Path) -> None:
    assert total_seconds(store, PARTS) is None
    for part, seconds in zip(PARTS, (1.0, 0.5, 0.25), strict=True):
        assert total_seconds(store, PARTS) is None
        add_seconds(store, part, seconds)
    assert total_seconds(store, PARTS) == 1.75
    assert total_seconds(store, PARTS[1:]) == 0.75
    assert not store.exists()


def test_a_part_with_other_content_is_another_part(store: Path) -> None:
    add_seconds(store, PARTS[0], 1.0)
    changed = replace(PARTS[0], sha256="f" * 64)
    assert total_seconds(store, [changed]) is None
    add_seconds(store, changed, 3.0)
    assert total_seconds(store, PARTS[:1]) == 1.0
    keep_seconds(store, [changed])
    assert total_seconds(store, [changed]) == 3.0
    assert total_seconds(store, PARTS[:1]) is None


def test_noting_a_part_writes_a_line_and_keeps_the_others(store: Path) -> None:
    """What was noted before is not written again: a store of n parts costs n lines, not n²."""
    add_seconds(store, PARTS[0], 1.0)
    (file,) = store.parent.iterdir()
    before = file.read_bytes()
    add_seconds(store, PARTS[1], 0.5)
    assert file.read_bytes().startswith(before)
    with file.open("a") as opened:
        opened.write("\n{half of a li")  # As a killed process leaves it.
    add_seconds(store, PARTS[2], 0.25)
    assert total_seconds(store, PARTS) == 1.75
    keep_seconds(store, PARTS[1:])
    assert len(file.read_bytes().splitlines()) == 1
    assert total_seconds(store, PARTS[1:]) == 0.75


@pytest.mark.parametrize("damaged", ["", "[1]", '{"a": "long"}', "null", "{"])
def test_a_damaged_file_is_no_record(store: Path, damaged: str) -> None:
    add_seconds(store, PARTS[0], 1.0)
    (file,) = store.parent.iterdir()
    file.write_text(damaged)
    assert total_seconds(store, PARTS[:1]) is None
    add_seconds(store, PARTS[0], 2.0)
    assert total_seconds(store, PARTS[:1]) == 2.0
