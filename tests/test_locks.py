"""Locks: held alone, or by shards of one number beside each other and nothing else."""

import threading
from pathlib import Path

import pytest

from kd_pipeline.errors import DataError
from kd_pipeline.locks import take_alone, take_lock


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "data/.run.lock"


@pytest.mark.parametrize(
    ("held", "asked"),
    [
        ("", ""),
        ("", "0-of-4"),
        ("0-of-4", ""),
        ("0-of-4", "0-of-4"),
        ("0-of-4", "1-of-2"),
        ("0-of-2", "1-of-12"),
    ],
)
def test_what_could_write_the_same_files_is_refused_and_free_afterwards(
    file: Path, held: str, asked: str
) -> None:
    lock = take_lock(file, busy="another run", shard=held)
    with pytest.raises(DataError, match=r"^another run \(process \d+ on .*\): wait"):
        take_lock(file, busy="another run", shard=asked)
    lock.release()
    take_lock(file, busy="another run", shard=asked).release()


def test_shards_of_one_number_work_beside_each_other_and_the_last_is_alone(file: Path) -> None:
    shards = [f"{index}-of-3" for index in range(3)]
    first, second, third = (take_lock(file, busy="busy", shard=shard) for shard in shards)
    assert take_alone(second, file, busy="busy") == (None, ["0-of-3", "2-of-3"])
    assert take_alone(first, file, busy="busy") == (None, ["2-of-3"])
    alone, others = take_alone(third, file, busy="busy")
    assert alone is not None
    assert others == []
    with pytest.raises(DataError, match="busy"):
        take_lock(file, busy="busy", shard="1-of-3")
    alone.release()
    take_lock(file, busy="busy", shard="1-of-3").release()


def test_of_shards_that_end_at_the_same_time_exactly_one_is_the_last(file: Path) -> None:
    locks = [take_lock(file, busy="busy", shard=f"{at}-of-8") for at in range(8)]
    ends, barrier = [], threading.Barrier(8)

    def end(lock: object) -> None:
        barrier.wait()
        ends.append(take_alone(lock, file, busy="busy")[0])  # type: ignore[arg-type]

    threads = [threading.Thread(target=end, args=(lock,)) for lock in locks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(lock is not None for lock in ends) == 1
