"""docs/architecture.md agrees with the code: its tables, its paths and its links."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from kd_pipeline.pipeline_registry import (
    BORN_AGAIN,
    COMPARE_LOSSES,
    DISTILL,
    DISTILL_CONTROLS,
    DISTILL_LIVE,
    DISTILL_PAIR,
    TEACHER_ASSISTANT,
    register_pipelines,
)
from kd_pipeline.pipelines.student_distillation import Student

ENCODING = "utf-8"
ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "architecture.md"
PACKAGE = ROOT / "src" / "kd_pipeline"
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
STUDENTS = {
    "distill": DISTILL,
    "distill_controls": DISTILL_CONTROLS,
    "compare_losses": COMPARE_LOSSES,
    "distill_pair": DISTILL_PAIR,
    "distill_live": DISTILL_LIVE,
    "teacher_assistant": TEACHER_ASSISTANT,
    "born_again": BORN_AGAIN,
}
WHOLE_RUNS = {"__default__", *STUDENTS}
BESIDE_DISTILL = {"verify_soft_targets", "sweep", "compare_groups"}
PLACEHOLDERS = {"<student>": DISTILL, "<searched>": (*DISTILL, *COMPARE_LOSSES)}
CONTRACTS: list[dict[str, Any]] = tomllib.loads((ROOT / "pyproject.toml").read_text(ENCODING))[
    "tool"
]["importlinter"]["contracts"]


def table(heading: str) -> list[list[str]]:
    """The cells of the one table below a heading, without its head."""
    section = PAGE.read_text(ENCODING).split(f"## {heading}\n")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[2:]]


def names(cell: str) -> set[str]:
    """What stands in backticks, `<student>` written out for every student of `distill`."""
    found = set(re.findall(r"`([^`]+)`", cell))
    for placeholder, students in PLACEHOLDERS.items():
        found = {name.replace(placeholder, one.name) for name in found for one in students}
    return found


def test_the_layers_are_those_of_import_linter() -> None:
    linted = [
        {name.removeprefix("kd_pipeline.") for name in re.split(" [|:] ", layer)}
        for layer in CONTRACTS[0]["layers"]
    ]
    rows = [names(row[1]) for row in table("Layers")]
    assert [{name.removesuffix(".py").rstrip("/") for name in row} for row in rows] == linted


def test_the_layers_hold_everything_in_the_package() -> None:
    folders = {f"{path.parent.name}/" for path in PACKAGE.glob("*/__init__.py")}
    modules = {path.name for path in PACKAGE.glob("*.py")} - {"__init__.py"}
    named = [name for row in table("Layers") for name in names(row[1])]
    assert sorted(named) == sorted(folders | modules)


def test_the_stages_are_the_registered_pipelines_in_order() -> None:
    stages = [next(iter(names(row[0]))) for row in table("Stages")]
    registered = [name for name in register_pipelines() if name not in WHOLE_RUNS]
    assert stages == registered
    folders = {path.parent.name for path in (PACKAGE / "pipelines").glob("*/__init__.py")}
    assert set(stages) == folders
    assert [f"kd_pipeline.pipelines.{stage}" for stage in stages] == CONTRACTS[1]["modules"]


@pytest.mark.parametrize("row", table("Stages"), ids=lambda row: row[0].strip("`"))
def test_a_stage_takes_and_gives_what_is_on_the_page(row: list[str]) -> None:
    pipeline = register_pipelines()[row[0].strip("`")]
    inputs = {name for name in pipeline.inputs() if not name.startswith("params:")}
    settings = {name.removeprefix("params:") for name in pipeline.inputs() - inputs}
    assert names(row[1]) == inputs
    assert names(row[2]) == set(pipeline.all_outputs())
    assert names(row[3]) == settings


def test_distill_is_all_stages_and_the_default() -> None:
    pipelines = register_pipelines()
    stages = [n for n in pipelines if n not in WHOLE_RUNS | BESIDE_DISTILL]
    assert {node.name for node in pipelines["distill"].nodes} == {
        node.name for stage in stages for node in pipelines[stage].nodes
    }
    assert pipelines["__default__"] == pipelines["distill"]


def source(student: Student) -> str:
    """What a student learns from, as the page writes it."""
    if student.learns_from == "labels":
        return "labels"
    if student.learns_from == "teacher":
        return "the live teacher" if student.live else "the teacher's cache"
    return f"the cache of `{student.learns_from}`"


def test_the_students_are_the_registered_ones() -> None:
    assert [row[:3] for row in table("Students")] == [
        [f"`{pipeline}`", f"`{student.name}`", source(student)]
        for pipeline, students in STUDENTS.items()
        for student in students
    ]


def test_every_artefact_lies_where_the_page_puts_it() -> None:
    catalogs = [
        yaml.safe_load(path.read_text(ENCODING)) for path in (ROOT / "conf/base").glob("catalog_*")
    ]
    entries = {
        name: (entry.get("filepath", "memory"), entry["metadata"]["kedro-viz"]["layer"])
        for catalog in catalogs
        for name, entry in catalog.items()
        if not name.startswith("_")
    }
    rows = table("Where each artefact lies")
    assert {row[0].strip("`"): (row[1].strip("`"), row[2]) for row in rows} == entries


def test_every_output_of_a_stage_is_kept() -> None:
    entries = {row[0].strip("`") for row in table("Where each artefact lies")}
    roles = {student.name for students in STUDENTS.values() for student in students}
    kept = {name.replace("{student}", role) for name in entries for role in roles}
    outputs = {
        name for pipeline in register_pipelines().values() for name in pipeline.all_outputs()
    }
    assert outputs <= kept


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_path_that_a_document_names_exists(document: Path) -> None:
    text = document.read_text(ENCODING)
    spelt = re.findall(r"`((?:src|conf|tests|docs|notebooks)/[\w./-]+)`", text)
    linked = [link for link in re.findall(r"\]\(([^)#\s]+)", text) if "://" not in link]
    missing = [path for path in spelt if not (ROOT / path).exists()]
    missing += [link for link in linked if not (document.parent / link).exists()]
    assert not missing


def test_every_decision_is_in_the_index() -> None:
    folder = ROOT / "docs" / "decisions"
    linked = re.findall(r"\]\((\d{4}-[\w-]+\.md)\)", (folder / "README.md").read_text(ENCODING))
    assert linked == sorted(path.name for path in folder.glob("0*.md"))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_make_target_that_a_document_names_exists(document: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(ENCODING), re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z-]+)`", document.read_text(ENCODING))) <= targets
