"""The image: its files are there, its steps run in a clean folder, and its health check passes."""

import fnmatch
import json
import os
import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest

dockerfile_parse = pytest.importorskip("dockerfile_parse", reason="an extra of `dev`")

ROOT = Path(__file__).parents[2]
ENVIRONMENT = "/opt/kd_pipeline"


@pytest.fixture(scope="module")
def parsed() -> Any:
    return dockerfile_parse.DockerfileParser(str(ROOT / "deploy/Dockerfile"))


def values(parsed: Any, instruction: str) -> list[str]:
    return [step["value"] for step in parsed.structure if step["instruction"] == instruction]


def copied(parsed: Any) -> list[tuple[list[str], str]]:
    """Sources and target of each COPY."""
    words = [value.split() for value in values(parsed, "COPY")]
    plain = [[word for word in one if not word.startswith("--")] for one in words]
    return [(sources, target) for *sources, target in plain]


def test_the_base_and_what_is_installed_are_pinned(parsed: Any) -> None:
    assert re.fullmatch(r"python:3\.11-slim-\w+", parsed.baseimage)
    script = (ROOT / "deploy/install.sh").read_text()
    assert script.count("pip install") == script.count("--constraint constraints.txt") == 1


def test_it_runs_as_a_user_that_is_not_root_and_checks_its_health(parsed: Any) -> None:
    assert values(parsed, "USER") == ["kd"]
    order = [step["instruction"] for step in parsed.structure]
    assert order.index("USER") > max(at for at, name in enumerate(order) if name == "RUN")
    (health,) = values(parsed, "HEALTHCHECK")
    assert json.loads(health.partition("CMD ")[2]) == ["deploy/smoke.sh"]


def test_all_that_is_copied_is_there_and_sent_to_the_builder(parsed: Any) -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    sent = {line[1:] for line in ignored if line.startswith("!")}
    for sources, _ in copied(parsed):
        for source in sources:
            assert (ROOT / source).exists(), source
            assert any(Path(source).is_relative_to(one) for one in sent), source
    assert "deploy/.env" in ignored
    # Whatever else there is stays out, such as data and passwords.
    assert ignored[1] == "*"


def test_the_steps_are_users_folders_and_the_script_that_installs(parsed: Any) -> None:
    """So that `test_the_steps_...` below runs all that an engine would, but for the users."""
    steps = [shlex.split(value) for value in values(parsed, "RUN")]
    assert [step[0] for step in steps] == ["useradd", "deploy/install.sh", "install"]
    assert steps[1] == ["deploy/install.sh", ENVIRONMENT, "$EXTRAS", "$TORCH_INDEX"]


def test_its_extras_are_those_of_the_project(parsed: Any) -> None:
    arguments = dict(value.split("=", 1) for value in values(parsed, "ARG"))
    extras = shlex.split(arguments["EXTRAS"])[0].split(",")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(extras) <= set(project["optional-dependencies"])
    assert shlex.split(arguments["TORCH_INDEX"]) == [""]


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_the_steps_run_in_a_clean_folder_and_the_health_check_passes(
    parsed: Any, tmp_path: Path
) -> None:
    """Without a container engine: only what is copied, a new environment, no variables."""
    for sources, target in copied(parsed):
        for source in sources:
            into = tmp_path / "project" / target
            if (ROOT / source).is_dir():
                ignore = shutil.ignore_patterns("__pycache__", "*.egg-info", "local")
                shutil.copytree(ROOT / source, into, ignore=ignore)
            else:
                into.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / source, into)
    environment = tmp_path / "environment"
    kept = {k: v for k, v in os.environ.items() if fnmatch.fnmatch(k, "PIP_*") or k == "HOME"}
    variables = kept | {"PATH": f"{environment}/bin:/usr/local/bin:/usr/bin:/bin"}
    arguments = dict(value.split("=", 1) for value in values(parsed, "ARG"))
    for step in values(parsed, "RUN"):
        if step.startswith("deploy/"):
            typed = step.replace(ENVIRONMENT, str(environment))
            for name, value in arguments.items():
                typed = typed.replace(f'"${name}"', value)
            run(typed, tmp_path / "project", variables)
    run("deploy/smoke.sh", tmp_path / "project", variables)
    assert not (tmp_path / "project/data").exists()
    shutil.rmtree(environment)  # Gigabytes.


def run(typed: str, folder: Path, variables: dict[str, str]) -> None:
    done = subprocess.run(
        shlex.split(typed), cwd=folder, env=variables, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
