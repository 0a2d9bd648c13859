"""A store that grows part by part: killed anywhere and begun again, it ends with the same bytes."""

import hashlib
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from kd_pipeline import atomic
from kd_pipeline.errors import DataError
from kd_pipeline.soft_targets import parts_folder
from kd_pipeline.soft_targets.encoding import Encoding
from kd_pipeline.soft_targets.manifest import Manifest, Part
from kd_pipeline.soft_targets.parts_folder import PartsFolder
from kd_pipeline.soft_targets.store import (
    SoftTargets,
    check_store,
    plan_store,
    read_soft_targets,
)

IDS = np.array([3, 10, 77, 2**40, 2**62], dtype=np.int64)
PART = "part-t001-v00000-s00001.parquet"


class Interruption(BaseException):
    """Nothing catches it, as nothing catches a kill."""


class Labelling:
    """Fills a folder of parts and puts the store in its place, counting what was labelled."""

    def __init__(self, folder: Path, logits: NDArray[np.float32], manifest: Manifest) -> None:
        self.staging, self.target = folder / ".interrupted/store", folder / "store"
        self.logits, self.manifest = logits, manifest
        self.labelled: list[str] = []

    def run(self, **changes: Any) -> SoftTargets:
        manifest = replace(self.manifest, **changes)
        self.labelled.clear()
        store = PartsFolder(self.staging, self.target).fill(manifest, IDS, self.logits_of)
        assert store.folder == self.target
        made = read_soft_targets(self.target)
        check_store(made)
        return made

    def logits_of(self, part: Part, example_ids: NDArray[np.int64]) -> NDArray[np.float32]:
        self.labelled.append(part.file)
        return self.logits[part.member, part.view][np.searchsorted(IDS, example_ids)]

    def digests(self) -> dict[str, str]:
        return {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest()
            for path in self.target.iterdir()
        }


@pytest.fixture
def manifest(store: SoftTargets) -> Manifest:
    return plan_store(
        IDS,
        provenance=store.manifest.provenance,
        encoding=Encoding(),
        facts={},
        rows_per_part=2,
    )


@pytest.fixture
def labelling(tmp_path: Path, logits: NDArray[np.float32], manifest: Manifest) -> Labelling:
    return Labelling(tmp_path / "labelling", logits, manifest)


def test_part_by_part_gives_the_bytes_of_writing_all_at_once(
    labelling: Labelling, store: SoftTargets
) -> None:
    labelling.run()
    assert len(labelling.labelled) == 12
    at_once = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in store.folder.iterdir()}
    assert labelling.digests() == at_once
    assert not labelling.staging.exists()


def count_calls(monkeypatch: pytest.MonkeyPatch, stop_at: int | None = None) -> list[str]:
    """Interrupt at the n-th step that touches the disk: before it, and half done where it can be.

    Steps are every sync, rename and removal of kd_pipeline.atomic and of the parts folder.
    """
    steps: list[str] = []

    def watch(owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def step(*arguments: Any, **keywords: Any) -> Any:
            steps.append(name)
            if len(steps) - 1 == stop_at:
                raise Interruption(f"{name} {arguments}")
            return real(*arguments, **keywords)

        monkeypatch.setattr(owner, name, step)

    watch(atomic, "_sync")
    watch(atomic.shutil, "rmtree")
    for name in ("replace", "rename", "unlink"):
        watch(Path, name)
    return steps


def test_interrupted_at_any_step_it_ends_with_the_same_bytes(
    labelling: Labelling, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between writing, syncing, renaming, the manifest and both renames of the swap."""
    with monkeypatch.context() as patch:
        steps = count_calls(patch)
        labelling.run()
    expected = labelling.digests()
    assert len(steps) > 60
    # Here and there among the parts, which are all alike; at every step of the end.
    for stop_at in [*range(0, len(steps) - 12, 5), *range(len(steps) - 12, len(steps))]:
        atomic.shutil.rmtree(labelling.staging.parent.parent)
        with monkeypatch.context() as patch:
            count_calls(patch, stop_at)
            with pytest.raises(Interruption):
                labelling.run()
        done = len(labelling.labelled)
        labelling.run()
        assert labelling.digests() == expected, f"interrupted at step {stop_at}"
        # At most the part under way is labelled twice.
        assert len(labelling.labelled) <= 12 - done + 1
        left = [path.name for path in labelling.target.parent.iterdir()]
        assert sorted(left) == [".interrupted", ".store.seconds.json", "store"]


def test_what_caching_took_is_known_after_it_was_interrupted_and_when_it_is_used_again(
    labelling: Labelling, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = time.perf_counter()
    with monkeypatch.context() as patch:
        patch.setattr(parts_folder, "write_manifest", _interrupt)
        with pytest.raises(Interruption):
            labelling.run()
    assert len(labelling.labelled) == 12
    elapsed = time.perf_counter() - started
    taken = labelling.run().caching_seconds
    assert taken is not None
    assert 0 < taken < elapsed
    assert labelling.labelled == []
    assert labelling.run().caching_seconds == taken


def test_a_store_that_is_used_elsewhere_may_have_no_record(store: SoftTargets) -> None:
    assert store.caching_seconds is None


def test_an_interruption_that_nothing_cleans_up_after_leaves_no_litter(
    labelling: Labelling, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill runs no `finally`: half-written files stay where they were."""
    labelling.run()
    expected = labelling.digests()
    atomic.shutil.rmtree(labelling.target)
    labelling.staging.mkdir(parents=True)
    (labelling.staging / f".{PART}.new").write_bytes(b"half a part")
    (labelling.staging / PART).write_bytes(b"without its note")
    (labelling.staging / f".{PART}.json.new").write_bytes(b'{"store": ')
    (labelling.staging / "folder").mkdir()
    (labelling.staging / "folder" / "file").write_bytes(b"of something else")
    old = labelling.target.parent / ".store.old-0123abcd"
    old.mkdir()
    labelling.run()
    assert labelling.digests() == expected
    assert not old.exists()


@pytest.mark.parametrize("fault", ["damaged", "missing"])
def test_only_the_parts_that_are_missing_or_damaged_are_labelled_again(
    labelling: Labelling, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    labelling.run()
    expected = labelling.digests()
    path = labelling.target / PART
    if fault == "missing":
        path.unlink()
    else:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="kd_pipeline"):
        labelling.run()
    assert labelling.labelled == [PART]
    assert labelling.digests() == expected
    assert "12 parts, 11 of the finished cache, 1 made" in caplog.text
    assert caplog.messages[0].startswith(f"finished soft targets: {PART} is {fault}")


@pytest.mark.parametrize("fault", ["cut off", "changed"])
def test_a_damaged_part_of_an_interrupted_run_is_labelled_again(
    labelling: Labelling,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    fault: str,
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(parts_folder, "write_manifest", _interrupt)
        with pytest.raises(Interruption):
            labelling.run()
    path = labelling.staging / PART
    data = path.read_bytes()
    if fault == "changed":  # In a page of logits: which only the page's checksum notices.
        logits = pq.ParquetFile(path).metadata.row_group(0).column(3)
        at = logits.data_page_offset + logits.total_compressed_size - 1
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    else:
        path.write_bytes(data[:-3])
    with caplog.at_level(logging.INFO, logger="kd_pipeline"):
        labelling.run()
    assert labelling.labelled == [PART]
    assert "12 parts, 11 of an interrupted run, 1 made" in caplog.text


def test_a_damaged_part_of_an_interrupted_run_is_taken_from_the_finished_cache(
    labelling: Labelling, caplog: pytest.LogCaptureFixture
) -> None:
    labelling.run()
    labelling.staging.mkdir()
    (labelling.staging / PART).write_bytes(b"half of it")
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="kd_pipeline"):
        labelling.run()
    assert labelling.labelled == []
    assert caplog.messages[0].startswith(f"unfinished soft targets: {PART} is damaged: ")
    assert caplog.messages[1:] == ["soft targets: 12 parts, 12 of the finished cache"]


def test_where_no_file_can_have_two_names_finished_parts_are_copied(
    labelling: Labelling, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError("no links here")

    labelling.run()
    before = labelling.digests()
    monkeypatch.setattr(os, "link", refuse)
    labelling.run()
    assert labelling.labelled == []
    assert labelling.digests() == before


def test_where_nothing_can_be_locked_a_run_says_so_and_goes_on(
    labelling: Labelling, caplog: pytest.LogCaptureFixture
) -> None:
    lock = labelling.staging.parent / ".store.lock"
    lock.mkdir(parents=True)
    with caplog.at_level(logging.WARNING, logger="kd_pipeline"):
        labelling.run()
    assert len(labelling.labelled) == 12
    warning = f"no lock in {lock.parent}: no second run may cache there: "
    (message,) = caplog.messages
    assert message.startswith(warning)
    assert "directory" in message.removeprefix(warning)


def test_the_same_again_labels_nothing(labelling: Labelling) -> None:
    labelling.run()
    before = labelling.digests()
    labelling.run()
    assert labelling.labelled == []
    assert labelling.digests() == before


@pytest.mark.parametrize(
    "change",
    [
        {"encoding": Encoding(2, 3.0)},
        {"rows_per_part": 3},
        {"facts": {"precision": "bfloat16"}},
        {"example_ids_digest": "of others"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_nothing_of_another_store_is_reused(
    labelling: Labelling,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    change: dict[str, Any],
) -> None:
    labelling.run()
    with monkeypatch.context() as patch:
        patch.setattr(parts_folder, "write_manifest", _interrupt)
        with pytest.raises(Interruption):
            labelling.run(facts={"precision": "float64"})
    with caplog.at_level(logging.INFO, logger="kd_pipeline"):
        made = PartsFolder(labelling.staging, labelling.target).fill(
            replace(labelling.manifest, **change), IDS, labelling.logits_of
        )
    assert "discarded 12 unfinished parts of another cache" in caplog.messages
    assert len(labelling.labelled) == 12 + len(made.manifest.parts)
    assert {path.name for path in labelling.target.iterdir()} == {
        "manifest.json",
        *(part.file for part in made.manifest.parts),
    }


def test_a_store_of_another_teacher_lends_no_part(
    labelling: Labelling, write_store: Callable[..., SoftTargets]
) -> None:
    write_store(labelling.target, seed=1, teacher_fingerprints=("t0", "other"))
    labelling.run()
    assert len(labelling.labelled) == 12


def test_a_finished_store_stays_whole_while_the_next_one_is_made(
    labelling: Labelling, monkeypatch: pytest.MonkeyPatch
) -> None:
    labelling.run()
    before = labelling.digests()
    with monkeypatch.context() as patch:
        patch.setattr(parts_folder, "write_manifest", _interrupt)
        with pytest.raises(Interruption):
            labelling.run(rows_per_part=3)
    assert labelling.digests() == before
    check_store(read_soft_targets(labelling.target))


def _interrupt(*_: Any, **__: Any) -> None:
    raise Interruption


_CACHES_FOR_EVER = """
import sys, time
from pathlib import Path
import numpy as np
from kd_pipeline.soft_targets.encoding import Encoding
from kd_pipeline.soft_targets.manifest import Provenance
from kd_pipeline.soft_targets.parts_folder import PartsFolder
from kd_pipeline.soft_targets.store import plan_store
ids = np.arange(4)
manifest = plan_store(ids, provenance=Provenance(("a", "b"), ("other",), "i", "s", {}, 1),
                      encoding=Encoding(), facts={}, rows_per_part=2)
def label(part, ids):
    if part.shard:
        print("under way", flush=True)
        time.sleep(60)
    return np.zeros((len(ids), 2), np.float32)
PartsFolder(Path(sys.argv[1]), Path(sys.argv[2])).fill(manifest, ids, label)
"""


def test_a_second_run_at_once_is_refused_and_a_killed_one_is_not_waited_for(
    labelling: Labelling,
) -> None:
    folders = [str(labelling.staging), str(labelling.target)]
    command = [sys.executable, "-c", _CACHES_FOR_EVER, *folders]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "under way\n"
        before = {path.name for path in labelling.staging.iterdir()}
        holder = rf"\(process {other.pid} on .*\)"
        message = rf"is caching into {labelling.target} {holder}: wait for it or stop it"
        try:
            with pytest.raises(DataError, match=message):
                labelling.run()
            assert {path.name for path in labelling.staging.iterdir()} == before
        finally:
            other.kill()
    labelling.run()
    assert len(labelling.labelled) == 12
