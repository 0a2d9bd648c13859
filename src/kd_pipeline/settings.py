"""Kedro's project settings."""

import os
import warnings
from collections.abc import Mapping
from typing import Any

from kedro.config import OmegaConfigLoader

from kd_pipeline.hooks.guard_hook import GuardHook
from kd_pipeline.hooks.memory_hook import MemoryHook
from kd_pipeline.hooks.mlflow_hook import MLflowHook
from kd_pipeline.hooks.object_storage_hook import ObjectStorageHook
from kd_pipeline.hooks.processes_hook import ProcessesHook
from kd_pipeline.hooks.resume_hook import ResumeHook
from kd_pipeline.hooks.run_lock_hook import RunLockHook
from kd_pipeline.hooks.terminal_hook import TerminalHook
from kd_pipeline.hooks.threads_hook import ThreadsHook
from kd_pipeline.memory import keep_freed_memory

# Before torch is imported. OpenMP's threads else spin while they wait for each other: beside other
# busy processes two of them trained at a tenth of the speed of one (docs/decisions/0027).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# Before threads are started (docs/decisions/0036).
keep_freed_memory()


def _environment(name: str, default: str | int = "") -> str | int:
    """Resolve `${environment:NAME,default}`: a machine's own paths, and the seed of one run."""
    return os.environ.get(name, default)


# Kedro 1.7 calls what omegaconf 2.4 renamed.
warnings.filterwarnings("ignore", message="register_new_resolver", category=UserWarning)


class LayeredConfigLoader(OmegaConfigLoader):
    """Lays `--params` over a block of parameters instead of putting them in its place.

    Kedro merges runtime parameters into the preset's files alone: with `--env=smoke
    --params=student_kd.temperature=4` the block of a preset that does not name it would consist
    of nothing but the temperature, and the arm would train with `soft_weight` 0.
    """

    def __getitem__(self, key: str) -> dict[str, Any]:
        """Load one kind of configuration."""
        merged: dict[str, Any] = super().__getitem__(key)
        given = self.runtime_params
        if key != "parameters" or not given:
            return merged
        self.runtime_params = {}
        try:
            files: dict[str, Any] = super().__getitem__(key)
        finally:
            self.runtime_params = given
        return merged | {name: _lay_over(files.get(name), merged[name]) for name in given}


def _lay_over(below: Any, above: Any) -> Any:
    if not isinstance(below, Mapping) or not isinstance(above, Mapping):
        return above
    return {**below, **{name: _lay_over(below.get(name), above[name]) for name in above}}


# Kedro calls those that ask for no order of their own from the last to the first.
HOOKS = (
    RunLockHook(),
    GuardHook(),
    ProcessesHook(),
    TerminalHook(),
    MLflowHook(),
    ResumeHook(),
    ObjectStorageHook(),
    ThreadsHook(),
    MemoryHook(),
)

CONFIG_LOADER_CLASS = LayeredConfigLoader
CONFIG_LOADER_ARGS = {
    "base_env": "base",
    "default_run_env": "local",
    "config_patterns": {
        "mlflow": ["mlflow*", "mlflow*/**"],
        "object_storage": ["object_storage*", "object_storage*/**"],
    },
    "custom_resolvers": {"environment": _environment},
}
