"""The one memory budget of a process, arrays on disk for what exceeds it, and its allocator.

Pixels and soft targets are the arrays that grow with the number of images. Their sizes are known
before they are made: what fits in the rest of the budget is held in memory, and what does not is
read from disk. Results do not depend on it.
"""

import ctypes
import math
import os
import shutil
import sys
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from kd_pipeline.errors import DataError, ParameterError

AUTO = "auto"
SHARE = 0.5
"""Of the machine's memory, or the container's, that `auto` takes: libraries, tables, the network
and the batches in work need the rest."""
CONTAINER_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)
"""Of cgroup v2, where `max` is none, and v1."""
_PROCESSES = "LOCAL_WORLD_SIZE"
_ALLOCATOR = {
    "MALLOC_TRIM_THRESHOLD_": (-1, 256 * 2**20),
    "MALLOC_MMAP_THRESHOLD_": (-3, 32 * 2**20),
    "MALLOC_ARENA_MAX": (-8, 1),
}
"""Of glibc (mallopt(3)): variable, number of the option, and its value here. A thread's own arena
is of heaps of 64 MiB at most, which are given back whenever they are empty."""


class MemoryBudget:
    """What a process may still hold of pixels and soft targets.

    An array counts until it is freed. The budget never refuses one: who asks for an array of a size
    that does not `fit` reads by batches or takes a `mapped_array` instead.
    """

    def __init__(self, num_bytes: int) -> None:
        """Nothing of `num_bytes` is taken yet."""
        self.left = num_bytes

    def fits(self, num_bytes: int) -> bool:
        """Whether so many bytes are left."""
        return num_bytes <= self.left

    def array(self, shape: Sequence[int], dtype: DTypeLike) -> NDArray[Any]:
        """An empty array in memory."""
        made = np.empty(tuple(shape), dtype)
        self.left -= made.nbytes
        weakref.finalize(made, self._give_back, made.nbytes).atexit = False
        return made

    def _give_back(self, num_bytes: int) -> None:
        self.left += num_bytes


def open_budget(given: int | str = AUTO) -> MemoryBudget:
    """The budget of `memory_budget_mb`: a number of MiB, or for `auto` half of the memory.

    Raises:
        ParameterError: If it is neither.
    """
    if given == AUTO:
        # Under torchrun, the processes of one machine share it.
        return MemoryBudget(int(SHARE * usable_memory()) // int(os.environ.get(_PROCESSES, "1")))
    if not isinstance(given, int) or isinstance(given, bool) or given < 1:
        raise ParameterError("memory_budget_mb", "be auto or a number of MiB from 1 on", given)
    return MemoryBudget(given * 2**20)


def keep_freed_memory() -> None:
    """Let the C library keep up to 256 MiB of what is freed, for this process and its forks.

    Else it gives the tensors of each training step back to the kernel, which has to clear new pages
    for those of the next. To be called before threads are started. Variables of glibc go before;
    other C libraries stay as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None and not any(name in os.environ for name in _ALLOCATOR):
        for option, value in _ALLOCATOR.values():
            mallopt(option, value)


def available_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1  # macOS has no affinity.


def usable_memory(limits: Sequence[Path] = CONTAINER_LIMITS) -> int:
    """Bytes of memory of the machine, or of the container if it may use less.

    Args:
        limits: Files that may hold the container's limit.
    """
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([total, *(found for file in limits if (found := _limit(file)) is not None)])


def _limit(file: Path) -> int | None:
    try:
        return int(file.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None  # Another system, or none set.


def fits_device(device: str, num_bytes: int) -> bool:
    """Whether a GPU has twice as many bytes free, since training needs the rest; on a CPU, yes."""
    import torch

    if torch.device(device).type != "cuda":
        return True
    free, _total = torch.cuda.mem_get_info(device)
    return num_bytes <= free // 2


def mapped_array(shape: Sequence[int], dtype: DTypeLike) -> NDArray[Any]:
    """An `np.memmap` of a scratch file without a name, which is gone with the array.

    Raises:
        DataError: If the disk has not as many bytes free.
    """
    num_bytes = math.prod(shape) * np.dtype(dtype).itemsize
    folder = scratch_folder(num_bytes, what=f"an array of {' x '.join(map(str, shape))} values")
    with tempfile.TemporaryFile(prefix="kd_pipeline_array_", dir=folder) as file:
        if sys.platform == "linux":
            # Other processes write too: a full disk is an error here, and would end this process
            # when the pages are written.
            os.posix_fallocate(file.fileno(), 0, num_bytes)
        return np.memmap(file, mode="w+", dtype=dtype, shape=tuple(shape))


def scratch_folder(num_bytes: int, *, what: str) -> str:
    """The folder for scratch files, which has so many bytes free.

    Raises:
        DataError: If it has not.
    """
    # /tmp is often memory under another name; /var/tmp is meant for what is large.
    folder = os.environ.get("TMPDIR", "/var/tmp")  # noqa: S108 - files there have random names
    folder = folder if os.access(folder, os.W_OK) else tempfile.gettempdir()
    # First: a sparse file that is written to a full disk ends the process (SIGBUS).
    if num_bytes >= (free := shutil.disk_usage(folder).free):
        raise DataError(
            f"{what} need {num_bytes / 2**30:,.1f} GiB, got {free / 2**30:,.1f} GiB free in "
            f"{folder} (TMPDIR)"
        )
    return folder
