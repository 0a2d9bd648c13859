"""Kedro hooks: checks, a lock, threads, memory, object storage, the terminal, MLflow."""

from kd_pipeline.hooks.guard_hook import GuardHook
from kd_pipeline.hooks.memory_hook import MemoryHook
from kd_pipeline.hooks.mlflow_hook import MLflowHook
from kd_pipeline.hooks.object_storage_hook import ObjectStorageHook
from kd_pipeline.hooks.processes_hook import ProcessesHook
from kd_pipeline.hooks.resume_hook import ResumeHook
from kd_pipeline.hooks.run_lock_hook import RunLockHook
from kd_pipeline.hooks.terminal_hook import TerminalHook
from kd_pipeline.hooks.threads_hook import ThreadsHook

__all__ = [
    "GuardHook",
    "MLflowHook",
    "MemoryHook",
    "ObjectStorageHook",
    "ProcessesHook",
    "ResumeHook",
    "RunLockHook",
    "TerminalHook",
    "ThreadsHook",
]
