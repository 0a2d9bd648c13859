"""Kedro hooks: checks before a run, what a person sees of it, and what MLflow is told."""

from kd_pipeline.hooks.guard_hook import GuardHook
from kd_pipeline.hooks.mlflow_hook import MLflowHook
from kd_pipeline.hooks.resume_hook import ResumeHook
from kd_pipeline.hooks.terminal_hook import TerminalHook

__all__ = ["GuardHook", "MLflowHook", "ResumeHook", "TerminalHook"]
