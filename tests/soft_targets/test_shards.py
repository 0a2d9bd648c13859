"""A store in shards: in any order, beside each other, killed and run again, the same bytes."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from kd_pipeline.errors import DataError, StaleArtefactError
from kd_pipeline.shards import Shard
from kd_pipeline.soft_targets.encoding import Encoding
from kd_pipeline.soft_targets.manifest import Manifest, Part
from kd_pipeline.soft_targets.parts_folder import PartsFolder
from kd_pipeline.soft_targets.seconds import total_seconds
from kd_pipeline.soft_targets.shards import describe_missing, parts_of
from kd_pipeline.soft_targets.shared_parts import PLAN_FILE
from kd_pipeline.soft_targets.store import (
    SoftTargets,
    check_store,
    plan_store,
    read_manifest,
    read_soft_targets,
)

IDS = np.array([3, 10, 77, 2**40, 2**62], dtype=np.int64)
NUM_PARTS = 12


def shards(count: int) -> list[Shard]:
    return [Shard(index, count) for index in range(count)]


class Interruption(BaseException):
    """Nothing catches it, as nothing catches a kill."""


class Labelling:
    """Makes the parts of the fixture `store`, in shards or at once."""

    def __init__(self, folder: Path, logits: NDArray[np.float32], manifest: Manifest) -> None:
        self.parts = PartsFolder(folder / ".interrupted/store", folder / "store")
        self.logits, self.manifest = logits, manifest
        self.labelled: list[str] = []
        self.before_part: Callable[[Part], None] = lambda _: None

    def logits_of(self, part: Part, example_ids: NDArray[np.int64]) -> NDArray[np.float32]:
        self.before_part(part)
        self.labelled.append(part.file)
        return self.logits[part.member, part.view][np.searchsorted(IDS, example_ids)]

    def run(self, *wanted: Shard, manifest: Manifest | None = None) -> None:
        for shard in wanted:
            self.parts.fill_shard(shard, manifest or self.manifest, IDS, self.logits_of)

    def fill(self) -> SoftTargets:
        return self.parts.fill(self.manifest, IDS, self.logits_of)

    @property
    def finished(self) -> Path:
        assert self.parts.finished is not None
        return self.parts.finished

    def files(self) -> dict[str, bytes]:
        check_store(read_soft_targets(self.finished))
        return contents(self.finished)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def labelling(tmp_path: Path, logits: NDArray[np.float32], store: SoftTargets) -> Labelling:
    provenance = store.manifest.provenance
    manifest = plan_store(
        IDS, provenance=provenance, encoding=Encoding(), facts={}, rows_per_part=2
    )
    return Labelling(tmp_path / "shards", logits, manifest)


@given(num_parts=st.integers(0, 40), count=st.integers(1, 50))
def test_shards_are_runs_of_the_layout_that_cover_it_and_differ_by_one_part_at_most(
    num_parts: int, count: int
) -> None:
    layout = [Part(0, view, 0, num_rows=1) for view in range(num_parts)]
    runs = [parts_of(shard, layout) for shard in shards(count)]
    assert [part for run in runs for part in run] == layout
    assert max(map(len, runs)) - min(map(len, runs)) <= 1


def test_what_is_missing_is_named_with_who_makes_it(labelling: Labelling) -> None:
    layout = labelling.manifest.layout()
    there = [part.file for part in layout[:4]]
    text = describe_missing(3, layout, there, at_work=["1-of-3"])
    expected = "4 of 12 parts are there, 8 missing: 4 of shard 1-of-3 (at work), "
    remedy = (
        "a shard not at work is run again, or `kedro run --pipelines=soft_target_caching` without "
        "shards makes the rest"
    )
    assert text == f"{expected}4 of shard 2-of-3 (not at work); {remedy}"
    # Of 100 shards only 12 have a part; eight of them are named, and of eight all.
    text = describe_missing(100, layout, [], at_work=[])
    assert "more of 4 other shards" in text
    assert text.count("1 of shard") == 8
    text = describe_missing(8, layout, [], at_work=[])
    assert text.count(" of shard ") == 8
    assert "other shards" not in text
    everything = [part.file for part in layout]
    assert describe_missing(3, layout, everything, at_work=["0-of-3"]) == (
        "12 of 12 parts are there; `kedro run --pipelines=soft_target_caching` without shards "
        "summarises them"
    )


@pytest.mark.parametrize("order", [1, -1], ids=["forwards", "backwards"])
@pytest.mark.parametrize("count", [1, 2, 4, 20])
def test_any_number_of_shards_in_any_order_gives_the_bytes_of_one_process(
    labelling: Labelling, store: SoftTargets, count: int, order: int
) -> None:
    wanted = [shard for shard in shards(count) if parts_of(shard, labelling.manifest.layout())]
    *first, last = wanted[::order]
    labelling.run(*first)
    assert not labelling.finished.exists()
    labelling.run(last)
    assert labelling.files() == contents(store.folder)
    assert len(labelling.labelled) == NUM_PARTS
    assert not labelling.parts.folder.exists()
    assert total_seconds(labelling.finished, read_manifest(labelling.finished).parts)
    left = labelling.finished.parent.glob(".store.seconds*")
    assert [path.name for path in left] == [".store.seconds.json"]


def test_the_parts_of_a_finished_cache_are_taken_over_by_the_shard_that_makes_what_it_lacks(
    labelling: Labelling, store: SoftTargets
) -> None:
    labelling.fill()
    lost = parts_of(Shard(1, 3), labelling.manifest.layout())[0].file
    (labelling.finished / lost).unlink()
    labelling.labelled.clear()
    labelling.run(Shard(1, 3))
    assert labelling.labelled == [lost]
    assert labelling.files() == contents(store.folder)


def test_no_part_is_taken_over_from_a_cache_of_another_teacher(labelling: Labelling) -> None:
    labelling.fill()
    labelling.labelled.clear()
    other = replace(labelling.manifest.provenance, teacher_fingerprints=("a" * 16, "b" * 16))
    labelling.run(Shard(0, 2), manifest=replace(labelling.manifest, provenance=other))
    assert len(labelling.labelled) == NUM_PARTS / 2
    assert read_manifest(labelling.finished).provenance == labelling.manifest.provenance


def test_a_shard_without_parts_says_so_and_leaves_all_as_it_is(
    labelling: Labelling, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        labelling.run(Shard(0, 20))
    text = "soft targets: shard 0-of-20 has nothing to do: the store has 12 parts (rows_per_part)"
    assert caplog.messages == [text]
    assert not labelling.parts.folder.exists()


def test_a_shard_states_what_it_has_done_and_what_is_missing(
    labelling: Labelling, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = shards(2)
    with caplog.at_level(logging.INFO):
        labelling.run(first)
        labelling.run(second)
    made = [text for text in caplog.messages if "made" in text]
    assert made == [f"soft targets of shard {i}-of-2: 6 parts, 6 made" for i in range(2)]
    assert caplog.messages[-1].startswith("soft targets: 12 of 12 parts are there; ")


def test_a_straggler_finishes_the_store_that_the_others_left_to_it(
    labelling: Labelling, store: SoftTargets, caplog: pytest.LogCaptureFixture
) -> None:
    others = Labelling(labelling.finished.parent, labelling.logits, labelling.manifest)

    def let_others_end(part: Part) -> None:
        if part == labelling.manifest.layout()[2]:  # The last of shard 0.
            others.run(*shards(4)[1:])
            assert not labelling.finished.exists()

    labelling.before_part = let_others_end
    with caplog.at_level(logging.INFO):
        labelling.run(Shard(0, 4))
    assert "11 of 12 parts are there, 1 missing: 1 of shard 0-of-4 (at work)" in caplog.text
    assert labelling.files() == contents(store.folder)


def test_what_would_write_the_same_parts_is_refused_while_a_shard_works(
    labelling: Labelling,
) -> None:
    others = Labelling(labelling.finished.parent, labelling.logits, labelling.manifest)
    busy = "another run is caching into"

    def ask(_: Part) -> None:
        for shard in (Shard(0, 4), Shard(1, 2)):
            with pytest.raises(DataError, match=busy):
                others.run(shard)
        with pytest.raises(DataError, match=busy):
            others.fill()

    labelling.before_part = ask
    labelling.run(Shard(0, 4))
    assert not others.labelled


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"teacher_fingerprints": ("t0", "other")}, r"teacher \(other shards \['t0', 't1'\]"),
        (
            {"num_views": 1},
            r"views \(other shards 2, this one 1\) and num_rows \(other shards 20, this one 10\)",
        ),
    ],
)
def test_shards_of_other_settings_are_refused_before_they_label(
    labelling: Labelling, store: SoftTargets, change: dict[str, object], named: str
) -> None:
    provenance = replace(labelling.manifest.provenance, **change)  # type: ignore[arg-type]
    other = replace(labelling.manifest, provenance=provenance)
    labelling.run(Shard(0, 2))
    remedy = "; give all shards the same settings, or remove that folder to begin anew$"
    message = f"^other shards have begun another store in .*{named}.*{remedy}"
    with pytest.raises(StaleArtefactError, match=message):
        labelling.run(Shard(1, 2), manifest=other)
    assert len(labelling.labelled) == NUM_PARTS / 2
    labelling.run(Shard(1, 2))
    assert labelling.files() == contents(store.folder)


def test_a_killed_shard_run_again_makes_what_is_missing_by_another_number_too(
    labelling: Labelling, store: SoftTargets
) -> None:
    def kill(part: Part) -> None:
        if part == labelling.manifest.layout()[8]:
            raise Interruption

    labelling.run(Shard(0, 2))
    labelling.before_part = kill
    with pytest.raises(Interruption):
        labelling.run(Shard(1, 2))
    labelling.before_part = lambda _: None
    labelling.run(Shard(2, 3), Shard(1, 3))
    assert labelling.files() == contents(store.folder)
    assert len(labelling.labelled) == NUM_PARTS


def test_the_last_shard_leaves_a_store_with_a_damaged_part_unfinished(
    labelling: Labelling, store: SoftTargets, caplog: pytest.LogCaptureFixture
) -> None:
    labelling.run(Shard(0, 2))
    damaged = labelling.parts.folder / labelling.labelled[0]
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with caplog.at_level(logging.INFO):
        labelling.run(Shard(1, 2))
    assert "11 of 12 parts are there, 1 missing: 1 of shard 0-of-2 (not at work)" in caplog.text
    assert not labelling.finished.exists()
    labelling.run(Shard(0, 2))
    assert labelling.files() == contents(store.folder)


@pytest.mark.parametrize("done", [[0], [0, 1]], ids=["of some", "of all"])
def test_a_run_without_shards_takes_what_shards_have_made(
    labelling: Labelling, store: SoftTargets, done: Sequence[int]
) -> None:
    labelling.run(*(Shard(index, 2) for index in done))
    labelling.fill()
    assert labelling.files() == contents(store.folder)
    assert len(labelling.labelled) == NUM_PARTS


def test_shards_run_again_beside_the_finished_store_label_nothing(
    labelling: Labelling, store: SoftTargets
) -> None:
    labelling.run(*shards(2), *shards(2))
    assert labelling.files() == contents(store.folder)
    assert len(labelling.labelled) == NUM_PARTS


def test_the_plan_is_put_once_and_does_not_reach_the_store(labelling: Labelling) -> None:
    labelling.run(Shard(0, 2))
    plan = labelling.parts.folder / PLAN_FILE
    inode = plan.stat().st_ino
    labelling.run(Shard(0, 2))
    assert plan.stat().st_ino == inode
    labelling.run(Shard(1, 2))
    assert PLAN_FILE not in labelling.files()
