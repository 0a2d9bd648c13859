"""Kedro's project settings."""

import os

from kd_pipeline.hooks import GuardHook, MLflowHook, TerminalHook


def _environment(name: str, default: str = "") -> str:
    """Resolve `${environment:NAME,default}`: a machine's own paths, outside the repository."""
    return os.environ.get(name, default)


HOOKS = (GuardHook(), TerminalHook(), MLflowHook())

CONFIG_LOADER_ARGS = {
    "base_env": "base",
    "default_run_env": "local",
    "config_patterns": {"mlflow": ["mlflow*", "mlflow*/**"]},
    "custom_resolvers": {"environment": _environment},
}
