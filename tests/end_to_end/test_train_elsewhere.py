"""docs/how-to/train-elsewhere.md, command by command: a student without the teacher."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).parents[2] / "docs/how-to/train-elsewhere.md"
SMOKE = {"KEDRO_ENV": "smoke"}


def commands(where: str) -> list[str]:
    text = PAGE.read_text(encoding="utf-8")
    (block,) = re.findall(rf"<!-- where: {where} -->\n```sh\n(.*?)^```$", text, re.M | re.S)
    return [line for line in block.splitlines() if line]


def follow(project: Any, where: str) -> None:
    for typed in commands(where):
        done = project.command(typed, environment=SMOKE)
        assert done.returncode == 0, f"{typed}\n{done.stdout}\n{done.stderr}"


def fingerprints(project: Any, arm: str) -> list[str]:
    folder = project.data / "06_models" / arm
    return [
        json.loads((replicate / "model.json").read_text())["fingerprint"]
        for replicate in sorted(folder.iterdir())
    ]


@pytest.mark.long
def test_the_documented_files_and_commands_train_the_same_students(
    finished: Any, another: Callable[[Path], Any], tmp_path: Path
) -> None:
    fresh = another(tmp_path / "elsewhere")
    follow(finished, "teacher")
    shutil.move(finished.path / "cache.tar.gz", fresh.path)
    follow(fresh, "elsewhere")
    assert not (fresh.data / "06_models/teacher").exists()
    for arm in ("student_kd", "student_baseline", "student_smoothed", "student_pseudo"):
        assert fingerprints(fresh, arm) == fingerprints(finished, arm), arm
    refused = fresh.command(
        "kedro run --pipelines=student_distillation --params=views.seed=1", environment=SMOKE
    )
    assert refused.returncode != 0
    assert "`soft_targets` do not match this run's view policy" in re.sub(
        r"\s+", " ", refused.stdout + refused.stderr
    )
