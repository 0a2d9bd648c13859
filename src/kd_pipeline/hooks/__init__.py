"""Kedro hooks: checks and a lock before a run, progress on the terminal, and logging to MLflow."""

from kd_pipeline.hooks.guard_hook import GuardHook
from kd_pipeline.hooks.mlflow_hook import MLflowHook
from kd_pipeline.hooks.resume_hook import ResumeHook
from kd_pipeline.hooks.run_lock_hook import RunLockHook
from kd_pipeline.hooks.terminal_hook import TerminalHook

__all__ = ["GuardHook", "MLflowHook", "ResumeHook", "RunLockHook", "TerminalHook"]
