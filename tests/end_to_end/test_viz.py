"""Kedro-Viz: the graph of a finished run builds offline, with layers, namespaces and previews."""

import json
import shutil
from typing import Any

import pytest

LAYERS = ["raw", "primary", "teacher", "soft targets", "student", "reporting", "export"]
NAMESPACES = {"teacher", "student_kd", "student_baseline", "student_smoothed", "student_pseudo"}


@pytest.fixture(scope="module")
def built(finished_run: Any) -> Any:
    """`build/api` of the finished run; only a folder is added to it."""
    done = finished_run.command("kedro viz build --include-previews")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Success" in done.stdout
    yield finished_run.path / "build/api"
    shutil.rmtree(finished_run.path / "build")


@pytest.fixture(scope="module")
def graph(built: Any) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((built / "main").read_text())
    return loaded


@pytest.fixture(scope="module")
def details(built: Any) -> dict[str, dict[str, Any]]:
    """What the panel beside a data set shows, by the data set's file or folder."""
    found = {}
    for file in (built / "nodes").iterdir():
        node = json.loads(file.read_text())
        if node.get("filepath"):
            found[node["filepath"].rpartition("/data/")[2]] = node
    return found


def test_layers_are_there_in_the_order_of_the_work(graph: dict[str, Any]) -> None:
    """Layers that form a circle are all switched off, without a message."""
    layers = graph["layers"]
    assert len(layers) >= 5
    assert layers == [layer for layer in LAYERS if layer in layers]


def test_a_teacher_assistant_has_its_layers_too(built: Any) -> None:
    """It is student and teacher in turn: layers of their own for both would form a circle."""
    graph = json.loads((built / "pipelines/teacher_assistant").read_text())
    used = {node["layer"] for node in graph["nodes"] if node["type"] == "data"}
    assert used == set(LAYERS)
    assert [layer for layer in graph["layers"] if layer in used] == LAYERS
    assert {"assistant", "student_assisted"} <= set(graph["modular_pipelines"])


def test_every_data_set_lies_in_a_layer(graph: dict[str, Any]) -> None:
    data = [node for node in graph["nodes"] if node["type"] == "data"]
    assert len(data) > 20
    assert [node["name"] for node in data if node["layer"] not in LAYERS] == []


def test_teacher_and_arms_are_namespaces(graph: dict[str, Any]) -> None:
    assert set(graph["modular_pipelines"]) >= NAMESPACES
    found = {node["name"] for node in graph["nodes"] if node["type"] == "modularPipeline"}
    assert found == NAMESPACES


def test_tables_figures_and_json_are_previewed(details: dict[str, dict[str, Any]]) -> None:
    expected = {
        "08_reporting/metrics.csv": "TablePreview",
        "08_reporting/history/student_kd.csv": "TablePreview",
        "08_reporting/split_summary.csv": "TablePreview",
        "03_primary/splits.parquet": "TablePreview",
        "07_model_output/predictions.parquet": "TablePreview",
        "08_reporting/figures/accuracy_figure.png": "ImagePreview",
        "08_reporting/comparison.json": "JSONPreview",
    }
    for file, kind in expected.items():
        assert details[file]["preview_type"] == kind, file
        assert details[file]["preview"], file


def test_the_workflow_tab_shows_how_every_node_ended(built: Any, graph: dict[str, Any]) -> None:
    status = json.loads((built / "run-status").read_text())["nodes"]
    tasks = {node["id"] for node in graph["nodes"] if node["type"] == "task"}
    assert tasks <= set(status)
    assert {status[task]["status"] for task in tasks} == {"success"}
