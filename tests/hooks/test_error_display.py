"""Our own errors end in their message; all others keep their traceback."""

import subprocess
import sys

import pytest

SCRIPT = """
from kd_pipeline.errors import DataError
from kd_pipeline.hooks.error_display import show_errors_concisely
show_errors_concisely()
show_errors_concisely()
try:
    raise {error}("`images` must be there")
except DataError as error:
    if {wrapped}:
        raise OSError(f"images: {{error}}") from error
    raise
"""


def stderr_of(error: str, *, wrapped: bool = False, **environment: str) -> list[str]:
    return stderr_of_script(SCRIPT.format(error=error, wrapped=wrapped), **environment)


def stderr_of_script(script: str, **environment: str) -> list[str]:
    command = [sys.executable, "-c", script]
    env = {"PYTHONPATH": ":".join(sys.path), **environment}
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 1
    return done.stderr.strip().splitlines()


def test_our_own_error_is_its_message_alone() -> None:
    lines = stderr_of("DataError")
    assert lines[-1] == "DataError: `images` must be there"
    assert not any("Traceback" in line for line in lines)


def test_so_is_one_that_kedro_has_wrapped() -> None:
    lines = stderr_of("DataError", wrapped=True)
    assert lines[-1] == "DataError: `images` must be there"
    assert not any("Traceback" in line for line in lines)


@pytest.mark.parametrize(
    ("error", "environment"),
    [("RuntimeError", {}), ("ValueError", {}), ("DataError", {"KD_TRACEBACK": "1"})],
)
def test_a_traceback_is_shown(error: str, environment: dict[str, str]) -> None:
    lines = stderr_of(error, **environment)
    assert lines[0].startswith("Traceback")
    assert lines[-1].endswith(f"{error}: `images` must be there")


def test_a_configuration_that_cannot_be_read_is_one_line() -> None:
    script = """
from omegaconf.errors import InterpolationKeyError
from kd_pipeline.hooks.error_display import show_errors_concisely
show_errors_concisely()
raise InterpolationKeyError("Interpolation key 'a.b' not found\\n    full_key: c")
"""
    lines = stderr_of_script(script)
    assert lines[-1] == "InterpolationKeyError: Interpolation key 'a.b' not found full_key: c"
    assert not any("Traceback" in line for line in lines)


def test_a_node_that_kedro_does_not_find_is_one_line() -> None:
    script = """
from kedro.pipeline import Pipeline
from kd_pipeline.hooks.error_display import show_errors_concisely
show_errors_concisely()
Pipeline([]).only_nodes("train_studnet")
"""
    lines = stderr_of_script(script)
    assert lines[-1] == "ValueError: Pipeline does not contain nodes named ['train_studnet']."
    assert not any("Traceback" in line for line in lines)
