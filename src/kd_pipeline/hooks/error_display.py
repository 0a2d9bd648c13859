"""Shows the errors that this project raises on purpose without a traceback."""

import os
import sys
from types import TracebackType

from kd_pipeline.errors import our_cause

TRACEBACK_VARIABLE = "KD_TRACEBACK"

_before = sys.excepthook


def show_errors_concisely() -> None:
    """Print only the message of an error that ends the process, if it comes from us.

    That is a `KdPipelineError`, also where Kedro has wrapped it while reading or writing data.
    Any other error, and every error where `KD_TRACEBACK` is set, is shown as before.
    """
    global _before
    if sys.excepthook is not _show:
        _before, sys.excepthook = sys.excepthook, _show


def _show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    ours = our_cause(error)
    if ours is None or os.environ.get(TRACEBACK_VARIABLE):
        _before(kind, error, trace)
        return
    sys.stdout.flush()
    hint = f"({TRACEBACK_VARIABLE}=1 shows where this was raised)"
    sys.stderr.write(f"\n{hint}\n{type(ours).__name__}: {ours}\n")
