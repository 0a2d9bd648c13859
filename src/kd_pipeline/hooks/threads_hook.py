"""How many threads torch computes with: sums round otherwise with another number."""

import logging
import math
import os
from pathlib import Path

from kedro.framework.context import KedroContext
from kedro.framework.hooks import hook_impl

from kd_pipeline.errors import ParameterError

AUTO = "auto"
CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""Of a container, as cgroup v2 has it: microseconds per period, and the period; `max` is none."""
VARIABLE = "OMP_NUM_THREADS"

logger = logging.getLogger(__name__)


class ThreadsHook:
    """Sets the number of threads at the start of a run, from `num_threads` in globals.yml."""

    def __init__(self) -> None:
        """`auto`, as where globals.yml does not name a number."""
        self._num_threads: int | str = AUTO

    @hook_impl
    def after_context_created(self, context: KedroContext) -> None:
        """Read the setting.

        Raises:
            ParameterError: If it is neither `auto` nor a number of threads.
        """
        given = context.config_loader["globals"].get("num_threads", AUTO)
        is_number = isinstance(given, int) and not isinstance(given, bool) and given > 0
        if given != AUTO and not is_number:
            raise ParameterError("num_threads", "be auto or a number from 1 on", given)
        self._num_threads = given

    @hook_impl
    def before_pipeline_run(self) -> None:
        """Set and log the number. `OMP_NUM_THREADS`, where it is set, goes before."""
        import torch

        if not os.environ.get(VARIABLE):
            torch.set_num_threads(chosen_threads(self._num_threads, torch.get_num_threads()))
        chosen_by = VARIABLE if os.environ.get(VARIABLE) else f"num_threads: {self._num_threads}"
        logger.info("threads of torch: %d (%s)", torch.get_num_threads(), chosen_by)


def chosen_threads(given: int | str, num_cores: int, quota: Path = CPU_QUOTA) -> int:
    """The given number, or for `auto` the cores, if the container may use that many.

    What else runs is left out: results would depend on it, and beside other processes threads that
    do not spin (`kd_pipeline.settings`) are nearly as fast as one.

    Args:
        given: `num_threads` of globals.yml.
        num_cores: Physical cores that this process may run on, as torch counts them.
        quota: File with the container's share of CPU time.
    """
    if isinstance(given, int):
        return given
    try:
        allowed, period = quota.read_text(encoding="ascii").split()
        bound = math.inf if allowed == "max" else int(allowed) / int(period)
    except (OSError, ValueError):
        bound = math.inf  # Another system, or none set.
    return max(1, math.floor(min(num_cores, bound)))
