"""Artefacts on object storage: whole or not at all, from any machine, whatever is ended when."""

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from kd_pipeline.errors import ObjectStorageError
from kd_pipeline.object_storage.listing import list_files, listing_file, read_listing
from kd_pipeline.object_storage.mirror import Mirror
from kd_pipeline.object_storage.store import ObjectStore

obstore_store = pytest.importorskip("obstore.store")

OLD = {"a": b"old", "deep/b": b"the same", "gone": b"left over"}
NEW = {"a": b"newer", "deep/b": b"the same", "c": b"more"}
NUM_REQUESTS = 12
"""More than a push or a pull of these makes."""


class EndedError(BaseException):
    """Nothing catches it, as nothing catches a kill."""


class Requests(ObjectStore):
    """Counts what is sent and fetched, and ends the process at the request of a number."""

    end_at = -1
    before_listing: Callable[[], object] = staticmethod(lambda: None)

    def __init__(self, backend: object) -> None:
        super().__init__(backend, "s3://bucket/x")
        self.sent: list[str] = []
        self.fetched: list[str] = []

    def _count(self) -> None:
        self.end_at -= 1
        if self.end_at == 0:
            raise EndedError

    def write(self, name: str, content: bytes | Path) -> None:
        self._count()
        super().write(name, content)
        self.sent.append(name)

    def delete(self, names: list[str]) -> None:
        self._count()
        super().delete(names)

    def put_if_absent(self, name: str, content: bytes) -> bool:
        self._count()
        self.before_listing()
        return super().put_if_absent(name, content)

    def fetch(self, name: str, target: Path, size_bytes: int) -> None:
        self._count()
        super().fetch(name, target, size_bytes)
        self.fetched.append(name)


class Machine(Mirror):
    """A machine with a disk of its own."""

    store: Requests

    def __init__(self, folder: Path, backend: object) -> None:
        super().__init__(folder, Requests(backend))
        self.path = folder / "models" / "teacher"

    def write(self, files: dict[str, bytes]) -> None:
        for name in self.path.rglob("*") if self.path.exists() else ():
            if name.is_file():
                name.unlink()
        for name, content in files.items():
            (self.path / name).parent.mkdir(parents=True, exist_ok=True)
            (self.path / name).write_bytes(content)

    def files(self) -> dict[str, bytes]:
        found = sorted(path for path in self.path.rglob("*") if path.is_file())
        return {path.relative_to(self.path).as_posix(): path.read_bytes() for path in found}

    def kept(self) -> dict[str, bytes]:
        """What another machine would have after a pull."""
        assert self.pull(self.path)
        return self.files()


@pytest.fixture
def machine(tmp_path: Path) -> Callable[[str], Machine]:
    backend = obstore_store.MemoryStore()
    return lambda name: Machine(tmp_path / name, backend)


def test_a_folder_is_the_same_on_another_machine(machine: Callable[[str], Machine]) -> None:
    one, other = machine("one"), machine("other")
    assert not other.pull(other.path)
    one.write(OLD)
    (one.path / ".hidden").write_bytes(b"of this machine")
    one.push(one.path)
    assert other.kept() == OLD
    one.write(NEW)
    one.push(one.path)
    assert other.kept() == NEW
    assert other.store.sizes("models").keys() == {
        "models/.teacher.objects.json", *(f"models/teacher/{name}" for name in NEW)
    }  # fmt: skip


def test_an_empty_folder_is_an_artefact_too(machine: Callable[[str], Machine]) -> None:
    one, other = machine("one"), machine("other")
    one.path.mkdir(parents=True)
    one.push(one.path)
    assert other.pull(other.path)
    assert other.path.is_dir()


def test_a_file_has_its_checksum_beside_it(machine: Callable[[str], Machine]) -> None:
    one, other = machine("one"), machine("other")
    one.folder.mkdir()
    for name in ("t.csv", ".t.csv.crc32", ".t.csv.new", "t.csv.bak"):
        (one.folder / name).write_text(name)
    one.push(one.folder / "t.csv")
    assert other.pull(other.folder / "t.csv")
    assert {path.name for path in other.folder.iterdir()} == {
        "t.csv", ".t.csv.crc32", ".t.csv.objects.json"
    }  # fmt: skip


def test_only_what_differs_is_sent_and_fetched(machine: Callable[[str], Machine]) -> None:
    one, other = machine("one"), machine("other")
    one.write(OLD)
    one.push(one.path)
    assert other.kept() == OLD
    one.write(NEW)
    one.store.sent.clear()
    other.store.fetched.clear()
    one.push(one.path)
    one.push(one.path)
    assert sorted(one.store.sent) == ["models/teacher/a", "models/teacher/c"]
    assert other.kept() == other.kept() == NEW
    assert sorted(other.store.fetched) == ["models/teacher/a", "models/teacher/c"]


@pytest.mark.parametrize("end_at", range(1, NUM_REQUESTS))
def test_a_push_that_is_ended_leaves_nothing_that_looks_finished(
    machine: Callable[[str], Machine], end_at: int
) -> None:
    one, other, late = machine("one"), machine("other"), machine("late")
    one.write(OLD)
    one.push(one.path)
    one.write(NEW)
    one.store.end_at = end_at
    try:
        one.push(one.path)
    except EndedError:
        try:
            assert other.kept() == OLD
        except ObjectStorageError as error:
            assert "models/teacher is unfinished there" in str(error)
            assert not other.path.exists()
            assert not other.pull(other.path, strict=False)
    else:
        assert end_at > 5
        assert other.kept() == NEW
    one.push(one.path)
    assert late.kept() == NEW


@pytest.mark.parametrize("end_at", range(1, 5))
def test_a_pull_that_is_ended_is_taken_up_by_the_next(
    machine: Callable[[str], Machine], end_at: int
) -> None:
    one, other = machine("one"), machine("other")
    for file in (one.path, one.path.with_name(".teacher.crc32")):
        file.parent.mkdir(parents=True, exist_ok=True)
    one.path.write_bytes(b"old")
    one.path.with_name(".teacher.crc32").write_bytes(b"of the old")
    one.push(one.path)
    assert other.pull(other.path)
    one.path.write_bytes(b"new")
    one.path.with_name(".teacher.crc32").write_bytes(b"of the new")
    one.push(one.path)
    other.store.end_at = end_at
    try:
        other.pull(other.path)
    except EndedError:
        other.store.end_at = -1
        assert other.pull(other.path)
    assert other.path.read_bytes() == b"new"
    assert other.path.with_name(".teacher.crc32").read_bytes() == b"of the new"


def test_of_two_that_write_at_once_one_is_refused(machine: Callable[[str], Machine]) -> None:
    one, other = machine("one"), machine("other")
    one.write(OLD)
    other.write(NEW)
    one.store.before_listing = lambda: other.push(other.path)
    with pytest.raises(ObjectStorageError, match="was written by another run at the same time"):
        one.push(one.path)


def test_two_that_write_the_same_at_once_both_end_well(machine: Callable[[str], Machine]) -> None:
    one, other = machine("one"), machine("other")
    for each, seconds in ((one, b"{1}"), (other, b"{2}")):
        each.write(NEW)
        each.path.with_name(".teacher.seconds.json").write_bytes(seconds)
    one.store.before_listing = lambda: other.push(other.path)
    one.push(one.path)
    assert machine("late").store.sizes("models").keys() == other.store.sizes("models").keys()


def test_what_was_made_here_and_not_sent_is_never_overwritten(
    machine: Callable[[str], Machine],
) -> None:
    one, other = machine("one"), machine("other")
    one.write(OLD)
    one.push(one.path)
    other.write({"a": b"made here"})
    with pytest.raises(ObjectStorageError, match=r"models/teacher is not what lies here.*delete"):
        other.pull(other.path)
    assert not other.pull(other.path, strict=False)
    assert other.files() == {"a": b"made here"}
    assert one.kept() == OLD


def test_damage_there_is_refused_by_the_name_of_the_file(
    machine: Callable[[str], Machine],
) -> None:
    one, other = machine("one"), machine("other")
    one.write(OLD)
    one.push(one.path)
    one.store.write("models/teacher/deep/b", b"the sane")
    with pytest.raises(ObjectStorageError, match="the checksum of teacher/deep/b differs") as told:
        other.pull(other.path)
    assert not other.path.exists()
    listing = re.findall(r"delete (\S+) and run", str(told.value))
    one.store.delete(listing)
    one.push(one.path)
    other.pull(other.path)
    assert other.files() == OLD
    one.store.write("models/.teacher.objects.json", b"{}")
    with pytest.raises(ObjectStorageError, match="models/teacher has a damaged listing"):
        other.pull(other.path)


def test_a_file_written_since_is_noticed_whatever_time_it_states(
    machine: Callable[[str], Machine],
) -> None:
    one = machine("one")
    one.write(OLD)
    one.push(one.path)
    known = read_listing(one.path)
    assert list_files(one.path, known) is known
    before = (one.path / "a").stat()
    (one.path / "a").write_bytes(b"odd")
    os.utime(one.path / "a", ns=(before.st_atime_ns, before.st_mtime_ns))
    os.utime(listing_file(one.path), ns=(before.st_atime_ns, before.st_ctime_ns))
    assert list_files(one.path, known) != known


def test_what_is_removed_is_gone_for_all(machine: Callable[[str], Machine]) -> None:
    one, other = machine("one"), machine("other")
    one.write(OLD)
    one.push(one.path)
    one.clear(one.path)
    assert not other.pull(other.path)
    assert not one.store.sizes("models")


def test_artefacts_of_a_folder_are_fetched_together(machine: Callable[[str], Machine]) -> None:
    one, other = machine("one"), machine("other")
    one.write(OLD)
    one.push(one.path)
    other.pull_all_in(other.path.parent)
    assert other.files() == OLD
