"""The pages of docs/experiments: `make results` lists each with commands that are there."""

import re
import subprocess
from pathlib import Path

import pytest

from kd_pipeline.pipeline_registry import register_pipelines

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "experiments"
PAGES = sorted(path for path in FOLDER.glob("*.md") if path.name != "README.md")
SWEPT = "sweep_best"


def listed() -> dict[str, list[str]]:
    """The commands that `make results` prints, by page."""
    done = subprocess.run(
        ["make", "-s", "results"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    found: dict[str, list[str]] = {}
    for line in done.stdout.splitlines():
        if heading := re.fullmatch(r"\S.* \(docs/experiments/(\S+)\)", line):
            found[heading[1]] = []
        elif line:
            found[list(found)[-1]].append(line.strip())
    return found


@pytest.fixture(scope="module")
def results() -> dict[str, list[str]]:
    return listed()


def test_every_page_is_listed_there_and_in_the_table(results: dict[str, list[str]]) -> None:
    names = [page.name for page in PAGES]
    assert list(results) == names
    assert re.findall(r"^\| \[.*?\]\((.*?)\)", (FOLDER / "README.md").read_text("utf-8"), re.M) == (
        sorted(names)
    )


def test_every_page_has_commands_and_they_name_what_there_is(
    results: dict[str, list[str]],
) -> None:
    pipelines = register_pipelines()
    for page, commands in results.items():
        assert commands, page
        for command in commands:
            for name in re.findall(r"--pipelines=(\S+)", command):
                assert set(name.split(",")) <= set(pipelines), command
            for preset in re.findall(r"--env=(\S+)", command):
                assert preset.startswith(SWEPT) or (ROOT / "conf" / preset).is_dir(), command
            for module in re.findall(r"-m (bench\.\w+)", command):
                assert (ROOT / module.replace(".", "/")).with_suffix(".py").is_file(), command
