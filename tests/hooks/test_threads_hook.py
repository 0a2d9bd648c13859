"""The number of threads: given, of the cores, of the container; what is refused."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kd_pipeline.errors import ParameterError
from kd_pipeline.hooks.threads_hook import ThreadsHook, chosen_threads


@pytest.fixture(autouse=True)
def threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def start(**given: Any) -> int:
    hook = ThreadsHook()
    hook.after_context_created(SimpleNamespace(config_loader={"globals": given}))
    hook.before_pipeline_run()
    return torch.get_num_threads()


@pytest.mark.parametrize("number", [1, 3])
def test_a_number_is_set(number: int) -> None:
    assert start(num_threads=number) == number


def test_the_environment_goes_before(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(2)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert start(num_threads=3) == 2


def test_the_number_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="kd_pipeline"):
        start(num_threads=2)
    assert caplog.messages == ["threads of torch: 2 (num_threads: 2)"]


@pytest.mark.parametrize(
    ("quota", "expected"),
    [
        ("max 100000", 8),
        ("400000 100000", 4),
        ("250000 100000", 2),  # Half a core is no thread.
        ("50000 100000", 1),
        ("1600000 100000", 8),
        ("", 8),
    ],
)
def test_auto_is_the_cores_within_the_quota(tmp_path: Path, quota: str, expected: int) -> None:
    (tmp_path / "cpu.max").write_text(f"{quota}\n")
    assert chosen_threads("auto", 8, tmp_path / "cpu.max") == expected
    assert chosen_threads(5, 8, tmp_path / "cpu.max") == 5


def test_auto_without_a_quota_is_the_cores(tmp_path: Path) -> None:
    assert chosen_threads("auto", 8, tmp_path / "cpu.max") == 8


@pytest.mark.parametrize("given", [0, -1, True, 1.5, "all", None])
def test_refuses_what_is_no_number_of_threads(given: Any) -> None:
    with pytest.raises(ParameterError, match="`num_threads` must be auto or a number from 1 on"):
        start(num_threads=given)


def test_threads_wait_without_spinning_unless_told_otherwise() -> None:
    code = "import os, kd_pipeline.settings; print(os.environ['OMP_WAIT_POLICY'])"
    kept = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    for given, expected in (({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")):
        done = subprocess.run(
            [sys.executable, "-c", code], env=kept | given, capture_output=True, text=True,
            check=True,
        )  # fmt: skip
        assert done.stdout.strip() == expected
