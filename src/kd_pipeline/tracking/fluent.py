"""MLflow's functions that have no client: their one global URI, and what they warn of."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def fluent_uri(uri: str) -> Iterator[None]:
    """Set MLflow's global URI, the only one that its flavours use; it enters the environment."""
    import mlflow

    before = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        # None unsets it, although not in the type hint; an empty one would mean ./mlruns.
        mlflow.set_tracking_uri(None)  # type: ignore[arg-type]
        if before is not None:
            os.environ["MLFLOW_TRACKING_URI"] = before


@contextmanager
def without_warnings() -> Iterator[None]:
    """Hide warnings about MLflow's own code, and about weights that are not on the CPU."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Operation with range", DeprecationWarning)  # Of pandas.
        for message in (".*AnyType", "No complete tensor found"):
            warnings.filterwarnings("ignore", message=message, category=UserWarning)
        yield
