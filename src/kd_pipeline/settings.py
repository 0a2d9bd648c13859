"""Kedro's project settings."""

import os
import warnings

from kd_pipeline.hooks import GuardHook, MLflowHook, TerminalHook


def _environment(name: str, default: str = "") -> str:
    """Resolve `${environment:NAME,default}`: a machine's own paths, outside the repository."""
    return os.environ.get(name, default)


# Kedro 1.7 calls what omegaconf 2.4 renamed.
warnings.filterwarnings("ignore", message="register_new_resolver", category=UserWarning)

HOOKS = (GuardHook(), TerminalHook(), MLflowHook())

CONFIG_LOADER_ARGS = {
    "base_env": "base",
    "default_run_env": "local",
    "config_patterns": {"mlflow": ["mlflow*", "mlflow*/**"]},
    "custom_resolvers": {"environment": _environment},
}
