"""MLflow's functions that have no client: their one global URI, their time, their warnings."""

import os
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from threading import Thread
from typing import TypeVar

Result = TypeVar("Result")


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


def within(seconds: float | None, work: Callable[[], Result]) -> Result:
    """Return what the calls of MLflow in `work` return; they have so many seconds, None for all.

    They are made in a thread, because they cannot be interrupted: one request after another, each
    with a time-out of its own, adds up to minutes at a slow server.

    Raises:
        TimeoutError: If they take longer. What they still do is not waited for.
    """
    future: Future[Result] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    Thread(target=run, name="mlflow-within", daemon=True).start()
    try:
        return future.result(seconds)
    except TimeoutError:
        if future.done():
            raise
        rule = "as long as `mlflow.max_wait_seconds` allows"
        raise TimeoutError(f"it has taken more than {seconds:g} s, {rule}") from None


@contextmanager
def without_warnings() -> Iterator[None]:
    """Hide warnings about MLflow's own code, and about weights that are not on the CPU."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Operation with range", DeprecationWarning)  # Of pandas.
        for message in (".*AnyType", "No complete tensor found"):
            warnings.filterwarnings("ignore", message=message, category=UserWarning)
        yield
