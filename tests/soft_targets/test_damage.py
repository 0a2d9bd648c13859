"""Whatever is wrong with a store on disk is found, and named with its file and its fault."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kd_pipeline.checksums import checked_dumps
from kd_pipeline.errors import StaleArtefactError
from kd_pipeline.soft_targets.parts import read_part, recover_part
from kd_pipeline.soft_targets.store import (
    SoftTargets,
    check_store,
    read_soft_targets,
)

Write = Callable[..., SoftTargets]
PART = "part-t001-v00000-s00001.parquet"
NEIGHBOUR = "part-t001-v00000-s00000.parquet"


def problem(folder: Path) -> str:
    """The message on opening a store and reading all of it."""
    with pytest.raises(StaleArtefactError) as caught:
        check_store(read_soft_targets(folder))
    message = str(caught.value)
    assert "kedro run --pipelines=soft_target_caching" in message
    return message


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory, write_store: Write) -> SoftTargets:
    return write_store(tmp_path_factory.mktemp("intact") / "store")


def test_a_flipped_bit_anywhere_in_a_part_is_found(intact: SoftTargets) -> None:
    """Data pages, page headers, the footer, its metadata: no byte is left unwatched."""
    path = intact.folder / PART
    whole = path.read_bytes()

    @given(position=st.integers(0, len(whole) - 1), bit=st.integers(0, 7))
    def flip(position: int, bit: int) -> None:
        data = bytearray(whole)
        data[position] ^= 1 << bit
        path.write_bytes(data)
        assert f"{PART} is damaged: its checksum differs" in problem(intact.folder)
        with pytest.raises(StaleArtefactError, match=PART):
            list(intact.parts(member=1, view=0))

    try:
        flip()
    finally:
        path.write_bytes(whole)
    check_store(read_soft_targets(intact.folder))


def test_a_flipped_bit_anywhere_in_the_manifest_is_found(intact: SoftTargets) -> None:
    path = intact.folder / "manifest.json"
    whole = path.read_bytes()

    @given(position=st.integers(0, len(whole) - 1), bit=st.integers(0, 7))
    def flip(position: int, bit: int) -> None:
        data = bytearray(whole)
        data[position] ^= 1 << bit
        path.write_bytes(data)
        assert "manifest.json cannot be read" in problem(intact.folder)

    try:
        flip()
    finally:
        path.write_bytes(whole)


def test_a_flipped_bit_in_an_unfinished_part_is_found_or_harmless(intact: SoftTargets) -> None:
    """An interrupted run leaves no checksum of the file, only those of its pages and its head."""
    part = next(part for part in intact.manifest.parts if part.file == PART)
    unfinished, path = replace(part, size_bytes=0, sha256=""), intact.folder / PART
    whole = path.read_bytes()
    rows = read_part(intact.folder, part, intact.manifest).rows.logits.tobytes()

    @settings(max_examples=200)
    @given(position=st.integers(0, len(whole) - 1), bit=st.integers(0, 7))
    def flip(position: int, bit: int) -> None:
        data = bytearray(whole)
        data[position] ^= 1 << bit
        path.write_bytes(data)
        try:
            made = recover_part(intact.folder, unfinished, intact.manifest)
        except StaleArtefactError:
            return
        assert read_part(intact.folder, made, intact.manifest).rows.logits.tobytes() == rows

    try:
        flip()
    finally:
        path.write_bytes(whole)


@given(kept=st.floats(0, 1, exclude_max=True))
def test_a_truncated_part_is_found_without_reading_all(intact: SoftTargets, kept: float) -> None:
    path = intact.folder / PART
    whole = path.read_bytes()
    try:
        path.write_bytes(whole[: int(kept * len(whole))])
        with pytest.raises(StaleArtefactError, match=rf"{PART} is damaged: it has \d+ bytes"):
            read_soft_targets(intact.folder)
    finally:
        path.write_bytes(whole)


def test_a_missing_part_is_found_without_reading_all(store: SoftTargets) -> None:
    (store.folder / PART).unlink()
    with pytest.raises(StaleArtefactError, match=f"{PART} is missing"):
        read_soft_targets(store.folder)
    with pytest.raises(
        StaleArtefactError, match=f"^`soft_targets` in {store.folder}: {PART} is mis"
    ):
        list(store.parts())


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"teacher_fingerprints": ("t0", "other")}, "teacher (part ['t0', 'other'], manifest"),
        ({"images_fingerprint": "j"}, "images (part j, manifest i)"),
        (
            {"images_fingerprint": "j", "splits_fingerprint": "z"},
            "another store: images (part j, manifest i) and splits (part z, manifest s)",
        ),
        ({"splits_fingerprint": "z"}, "splits (part z, manifest s)"),
        ({"view_policy": {"seed": 9, "transforms": []}}, "view policy (part {'seed': 9"),
        ({"class_names": ("a", "b", "d", "c")}, "class names (part ['a', 'b', 'd', 'c']"),
    ],
)
def test_a_part_of_another_store_is_named_as_such_though_intact(
    store: SoftTargets, tmp_path: Path, write_store: Write, changes: dict[str, Any], what: str
) -> None:
    other = write_store(tmp_path / "other", seed=1, **changes)
    shutil.copy(other.folder / PART, store.folder / PART)
    message = problem(store.folder)
    assert f"{PART} is a part of another store" in message
    assert what in message
    assert "manifest.json is of" not in message


def test_swapped_parts_are_named_as_such(store: SoftTargets) -> None:
    first, second = store.folder / PART, store.folder / NEIGHBOUR
    held = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(held)
    message = problem(store.folder)
    assert f"{PART} is not where it belongs: it holds member 1 view 0 shard 0" in message
    assert f"{NEIGHBOUR} is not where it belongs: it holds member 1 view 0 shard 1" in message


def test_a_manifest_of_another_run_is_refused_for_what_differs(
    store: SoftTargets, tmp_path: Path, write_store: Write
) -> None:
    other = write_store(tmp_path / "other", seed=1, teacher_fingerprints=("t8", "t9"))
    shutil.copy(other.folder / "manifest.json", store.folder / "manifest.json")
    message = problem(store.folder)
    assert "is a part of another store" in message
    assert "teacher (part ['t0', 't1'], manifest ['t8', 't9'])" in message


def test_a_manifest_of_another_run_of_the_same_teacher_is_found(
    store: SoftTargets, tmp_path: Path, write_store: Write
) -> None:
    """All that it states of the run is right: only the parts' checksums are of other logits."""
    other = write_store(tmp_path / "other", seed=1)
    shutil.copy(other.folder / "manifest.json", store.folder / "manifest.json")
    with pytest.raises(StaleArtefactError) as caught:
        check_store(SoftTargets(store.folder, other.manifest))
    assert all(f"{part.file} is damaged" in str(caught.value) for part in store.manifest.parts)
    assert "is damaged" in problem(store.folder)


def test_a_manifest_changed_by_hand_is_found_by_the_parts(store: SoftTargets) -> None:
    """Even one whose own checksum was made anew: each part holds the head that it was made with."""
    path = store.folder / "manifest.json"
    data = json.loads(path.read_text())
    del data["sha256"]
    data["provenance"]["splits_fingerprint"] = "of this run"
    path.write_text(checked_dumps(data, indent=2) + "\n")
    message = problem(store.folder)
    assert "is a part of another store: splits (part s, manifest of this run)" in message


@pytest.mark.parametrize("name", ["part-t000-v00000-s00009.parquet", "notes.txt"])
def test_a_file_that_does_not_belong_is_found(store: SoftTargets, name: str) -> None:
    """`*.parquet` is how other readers take the parts: a stray one would be rows to them."""
    shutil.copy(store.folder / PART, store.folder / name)
    with pytest.raises(StaleArtefactError, match=f"{name} is no part of this store"):
        read_soft_targets(store.folder)


def test_hidden_files_of_the_desktop_do_no_harm(store: SoftTargets) -> None:
    (store.folder / ".DS_Store").write_bytes(b"macOS")
    check_store(read_soft_targets(store.folder))


def test_every_fault_is_named_at_once(store: SoftTargets) -> None:
    (store.folder / PART).write_bytes((store.folder / PART).read_bytes()[:-1])
    (store.folder / NEIGHBOUR).unlink()
    (store.folder / "stray.parquet").write_bytes(b"")
    message = problem(store.folder)
    assert all(name in message for name in (PART, NEIGHBOUR, "stray.parquet"))


@pytest.mark.parametrize(("num_faults", "end"), [(20, ""), (21, "; and 1 more")])
def test_of_many_faults_twenty_are_named(store: SoftTargets, num_faults: int, end: str) -> None:
    for number in range(num_faults):
        (store.folder / f"stray{number:02d}").write_bytes(b"")
    named = "; ".join(f"stray{number:02d} is no part of this store" for number in range(20))
    message = problem(store.folder)
    assert message.startswith(f"`soft_targets` in {store.folder}: {named}{end}; cache them anew: ")


def test_what_is_damaged_after_opening_is_found_when_it_is_read(store: SoftTargets) -> None:
    opened = read_soft_targets(store.folder)
    path = store.folder / PART
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 4
    path.write_bytes(data)
    with pytest.raises(StaleArtefactError, match=f"{PART} is damaged"):
        check_store(opened)
