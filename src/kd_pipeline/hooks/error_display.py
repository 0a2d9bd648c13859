"""Errors about settings and artefacts are shown without a traceback."""

import os
import sys
import traceback
from collections.abc import Callable
from types import TracebackType

from kedro.config import MissingConfigException
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from kd_pipeline.errors import KdPipelineError, our_cause

_OF_CONFIGURATION = (MissingConfigException, OmegaConfBaseException, YAMLError)
_OF_COMMAND = ("kedro.framework.session.session", "kedro.pipeline.pipeline")
"""Where Kedro looks up the pipelines, nodes and tags that a command names."""
TRACEBACK_VARIABLE = "KD_TRACEBACK"

_ExceptHook = Callable[[type[BaseException], BaseException, TracebackType | None], object]


def show_errors_concisely() -> None:
    """Print only the message of an error that ends the process, if it is about a user's input.

    That is a `KdPipelineError`, also where Kedro has wrapped it while reading or writing data, an
    error of reading the configuration (no such preset, no YAML, a `${name}` of nothing), and an
    unknown pipeline, node or tag of `kedro run`, which Kedro looks up before any hook could. Any
    other error, and every error where `KD_TRACEBACK` is set, is shown as before.
    """
    if not isinstance(sys.excepthook, _ConciseDisplay):
        sys.excepthook = _ConciseDisplay(sys.excepthook)


class _ConciseDisplay:
    def __init__(self, before: _ExceptHook) -> None:
        self._before = before

    def __call__(
        self, kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        is_input = isinstance(error, _OF_CONFIGURATION) or _is_of_command(error, trace)
        shown = error if is_input else our_cause(error)
        if shown is None or os.environ.get(TRACEBACK_VARIABLE):
            self._before(kind, error, trace)
            return
        sys.stdout.flush()
        hint = f"({TRACEBACK_VARIABLE}=1 shows where this was raised)"
        text = str(shown) if isinstance(shown, KdPipelineError) else " ".join(str(shown).split())
        sys.stderr.write(f"\n{hint}\n{type(shown).__name__}: {text}\n")


def _is_of_command(error: BaseException, trace: TracebackType | None) -> bool:
    if type(error) is not ValueError or trace is None:
        return False
    *_, (frame, _) = traceback.walk_tb(trace)
    return frame.f_globals.get("__name__") in _OF_COMMAND
