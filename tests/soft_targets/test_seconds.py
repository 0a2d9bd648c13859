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
    return tmp_path / "later" / "store"


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


@pytest.mark.parametrize("damaged", ["", "[1]", '{"a": "long"}', "null", "{"])
def test_a_damaged_file_is_no_record(store: Path, damaged: str) -> None:
    add_seconds(store, PARTS[0], 1.0)
    (file,) = store.parent.iterdir()
    file.write_text(damaged)
    assert total_seconds(store, PARTS[:1]) is None
    add_seconds(store, PARTS[0], 2.0)
    assert total_seconds(store, PARTS[:1]) == 2.0
