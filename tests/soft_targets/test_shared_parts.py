"""A store made by several machines on one object storage: the bytes of one, whatever is ended."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from kd_pipeline.errors import StaleArtefactError
from kd_pipeline.object_storage.mirror import Mirror
from kd_pipeline.object_storage.store import ObjectStore
from kd_pipeline.soft_targets.encoding import Encoding
from kd_pipeline.soft_targets.manifest import Manifest, Part
from kd_pipeline.soft_targets.parts_folder import PartsFolder
from kd_pipeline.soft_targets.shards import Shard
from kd_pipeline.soft_targets.shared_parts import SharedParts
from kd_pipeline.soft_targets.store import SoftTargets, check_store, plan_store, read_soft_targets

obstore_store = pytest.importorskip("obstore.store")

IDS = np.array([3, 10, 77, 2**40, 2**62], dtype=np.int64)
NUM_PARTS = 12


class EndedError(BaseException):
    """Nothing catches it, as nothing catches a kill."""


class Machine:
    """Labels into a disk of its own and an object storage that it shares."""

    def __init__(self, folder: Path, backend: object, logits: NDArray[np.float32]) -> None:
        self.mirror = Mirror(folder, ObjectStore(backend, "s3://bucket/x"))
        making, self.finished = folder / ".interrupted/store", folder / "store"
        self.parts = PartsFolder(
            making, self.finished, SharedParts(self.mirror, making, self.finished)
        )
        self.logits = logits
        self.labelled: list[str] = []
        self.before_part: Callable[[Part], object] = lambda _: None

    def logits_of(self, part: Part, example_ids: NDArray[np.int64]) -> NDArray[np.float32]:
        self.before_part(part)
        self.labelled.append(part.file)
        return self.logits[part.member, part.view][np.searchsorted(IDS, example_ids)]

    def fill(self, manifest: Manifest) -> None:
        self.parts.fill(manifest, IDS, self.logits_of)

    def shard(self, index: int, count: int, manifest: Manifest) -> None:
        self.parts.fill_shard(Shard(index, count), manifest, IDS, self.logits_of)

    def end_before(self, number: int) -> None:
        def end(_: Part) -> None:
            if len(self.labelled) == number:
                raise EndedError

        self.before_part = end

    def objects(self) -> set[str]:
        return set(self.mirror.store.sizes(""))

    def kept(self) -> dict[str, bytes]:
        assert self.mirror.pull(self.finished)
        check_store(read_soft_targets(self.finished))
        return contents(self.finished)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def plan(store: SoftTargets, *, rows_per_part: int = 2) -> Manifest:
    provenance = store.manifest.provenance
    return plan_store(
        IDS, provenance=provenance, encoding=Encoding(), facts={}, rows_per_part=rows_per_part
    )


@pytest.fixture
def machine(tmp_path: Path, logits: NDArray[np.float32]) -> Callable[[str], Machine]:
    backend = obstore_store.MemoryStore()
    return lambda name: Machine(tmp_path / name, backend, logits)


@pytest.mark.parametrize("ended_at", [0, 1, 5, 11])
def test_another_machine_goes_on_where_one_was_ended(
    machine: Callable[[str], Machine], store: SoftTargets, ended_at: int
) -> None:
    one, other = machine("one"), machine("other")
    one.end_before(ended_at)
    with pytest.raises(EndedError):
        one.fill(plan(store))
    assert not machine("reader").mirror.pull(machine("reader").finished)
    other.fill(plan(store))
    assert len(other.labelled) == NUM_PARTS - ended_at
    assert machine("reader").kept() == contents(store.folder)
    assert not [name for name in other.objects() if ".interrupted" in name]


@pytest.mark.parametrize("count", [1, 2, 4])
def test_shards_on_several_machines_make_the_store_of_one(
    machine: Callable[[str], Machine], store: SoftTargets, count: int
) -> None:
    machines = [machine(str(index)) for index in range(count)]
    for index, one in reversed(list(enumerate(machines))):
        assert not machine("reader").mirror.pull(machine("reader").finished)
        one.shard(index, count, plan(store))
    assert sum(len(one.labelled) for one in machines) == NUM_PARTS
    assert machine("reader").kept() == contents(store.folder)
    summarising = machine("summarising")
    summarising.fill(plan(store))
    assert not summarising.labelled
    assert contents(summarising.finished) == contents(store.folder)


def test_a_shard_that_was_ended_makes_the_rest_on_another_machine(
    machine: Callable[[str], Machine], store: SoftTargets
) -> None:
    one, other, third = machine("one"), machine("other"), machine("third")
    one.end_before(2)
    with pytest.raises(EndedError):
        one.shard(0, 2, plan(store))
    other.shard(1, 2, plan(store))
    assert not other.finished.exists()
    third.shard(0, 2, plan(store))
    assert len(third.labelled) == NUM_PARTS // 2 - 2
    assert machine("reader").kept() == contents(store.folder)


def test_two_shards_that_end_at_once_both_end_well(
    machine: Callable[[str], Machine], store: SoftTargets
) -> None:
    one, other = machine("one"), machine("other")
    other.shard(1, 2, plan(store))
    rest = machine("rest")
    publish = one.mirror.push

    def push_after_the_other(path: Path) -> None:
        rest.shard(0, 2, plan(store))  # Finds all parts there too, and finishes first.
        publish(path)

    one.mirror.push = push_after_the_other  # type: ignore[method-assign]
    one.shard(0, 2, plan(store))
    assert machine("reader").kept() == contents(store.folder)


def test_a_shard_fetches_the_store_that_another_machine_has_finished_meanwhile(
    store: SoftTargets, machine: Callable[[str], Machine]
) -> None:
    manifest, late, other = plan(store), machine("late"), machine("other")

    def finish_elsewhere(_: Part) -> None:
        late.before_part = lambda _: None
        other.fill(manifest)
        other.mirror.push(other.finished)

    late.before_part = finish_elsewhere
    late.shard(0, 2, manifest)
    assert len(late.labelled) == NUM_PARTS / 2
    assert contents(late.finished) == contents(store.folder)


def test_a_shard_of_another_store_is_refused(
    machine: Callable[[str], Machine], store: SoftTargets
) -> None:
    machine("one").shard(0, 2, plan(store))
    message = (
        r"^others have begun another store in s3://bucket/x: "
        r"rows_per_part \(others 2, this one 1\) and "
        r"facts \(others \{\}, this one \{'precision': 'bfloat16'\}\)"
        "; give all shards the same settings, or run without shards to begin anew$"
    )
    changed = replace(plan(store, rows_per_part=1), facts={"precision": "bfloat16"})
    with pytest.raises(StaleArtefactError, match=message):
        machine("other").shard(1, 2, changed)


def test_a_process_alone_discards_what_an_ended_run_has_left_of_another_store(
    machine: Callable[[str], Machine], store: SoftTargets
) -> None:
    one, other = machine("one"), machine("other")
    one.end_before(3)
    with pytest.raises(EndedError):
        one.fill(plan(store, rows_per_part=1))
    other.fill(plan(store))
    assert len(other.labelled) == NUM_PARTS
    assert machine("reader").kept() == contents(store.folder)


def test_a_finished_store_that_was_damaged_here_is_mended_from_its_other_parts(
    machine: Callable[[str], Machine], store: SoftTargets
) -> None:
    one = machine("one")
    one.fill(plan(store))
    damaged = one.finished / one.labelled.pop()
    damaged.write_bytes(damaged.read_bytes()[:-1])
    one.labelled.clear()
    one.fill(plan(store))
    assert one.labelled == [damaged.name]
    assert machine("reader").kept() == contents(store.folder)


def test_a_finished_store_whose_manifest_is_damaged_is_made_anew(
    machine: Callable[[str], Machine], store: SoftTargets
) -> None:
    one, other = machine("one"), machine("other")
    one.fill(plan(store))
    manifest = "store/manifest.json"
    one.mirror.store.delete([manifest])
    one.mirror.store.put_if_absent(manifest, b'{"format": ')
    other.fill(plan(store))
    assert len(other.labelled) == NUM_PARTS
    assert contents(other.finished) == contents(store.folder)


def test_a_finished_store_is_replaced_when_the_next_is_whole_and_not_before(
    machine: Callable[[str], Machine], store: SoftTargets
) -> None:
    one, other = machine("one"), machine("other")
    one.fill(plan(store, rows_per_part=1))
    old = machine("reader").kept()
    other.end_before(4)
    with pytest.raises(EndedError):
        other.fill(plan(store))
    assert machine("late").kept() == old
    machine("third").fill(plan(store))
    assert machine("last").kept() == contents(store.folder)
