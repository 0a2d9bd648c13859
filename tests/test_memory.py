"""The memory budget: what is left counts, freed arrays are given back, `auto` heeds a container."""

import ctypes
import gc
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kd_pipeline.errors import DataError, ParameterError
from kd_pipeline.memory import MemoryBudget, mapped_array, open_budget, usable_memory


def test_an_array_counts_until_it_and_its_views_are_freed() -> None:
    budget = MemoryBudget(100)
    array = budget.array((5, 2), np.float64)
    assert array.shape == (5, 2)
    assert budget.left == 20
    assert budget.fits(20)
    assert not budget.fits(21)
    view = array[2:, :1]
    del array
    gc.collect()
    assert budget.left == 20
    del view
    gc.collect()
    assert budget.left == 100


def test_a_mapped_array_is_an_array_and_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    array = mapped_array((3, 4), np.float16)
    array[:] = np.arange(12).reshape(3, 4)
    assert array.sum() == 66
    assert list(tmp_path.iterdir()) == []


def test_a_mapped_array_larger_than_the_disk_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with pytest.raises(DataError, match=r"1048576 x 1073741824 values need 1,048,576\.0 GiB"):
        mapped_array((2**20, 2**30), np.uint8)
    assert list(tmp_path.iterdir()) == []


def test_a_number_is_of_mebibytes() -> None:
    assert open_budget(3).left == 3 * 2**20


@pytest.mark.parametrize("given", [0, -1, True, 1.5, "all", None])
def test_refuses_what_is_no_budget(given: Any) -> None:
    with pytest.raises(ParameterError, match="`memory_budget_mb` must be auto or a number of MiB"):
        open_budget(given)


@pytest.mark.parametrize(
    ("limit", "expected"), [("1048576\n", 2**20), ("max\n", None), ("", None), (f"{2**62}", None)]
)
def test_usable_memory_is_the_machines_or_the_containers(
    tmp_path: Path, limit: str, expected: int | None
) -> None:
    (tmp_path / "memory.max").write_text(limit)
    machine = usable_memory([tmp_path / "missing"])
    assert machine > 2**28
    assert usable_memory([tmp_path / "missing", tmp_path / "memory.max"]) == (expected or machine)


def test_auto_is_half_of_what_is_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert open_budget("auto").left == usable_memory() // 2 // 4
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    assert open_budget("auto").left == open_budget().left == usable_memory() // 2


def _faults_after_the_first_steps(**variables: str) -> int:
    """Page faults of a thread that makes and frees 50 arrays of 3 MiB, ten times."""
    code = """
import resource, threading
import numpy as np
import kd_pipeline.settings
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def work():
    for step in range(20):
        if step == 10:
            before = faults()
        [np.ones(3 * 2**20, np.uint8) for _ in range(50)]
    print(faults() - before)
thread = threading.Thread(target=work)
thread.start()
thread.join()
"""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=kept | variables, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    return int(done.stdout)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="not glibc")
def test_a_run_uses_freed_memory_again_unless_glibc_is_told_otherwise() -> None:
    num_pages = 10 * 50 * 3 * 2**20 // os.sysconf("SC_PAGE_SIZE")
    assert _faults_after_the_first_steps() < num_pages / 100
    assert _faults_after_the_first_steps(MALLOC_MMAP_THRESHOLD_="131072") > num_pages / 2
