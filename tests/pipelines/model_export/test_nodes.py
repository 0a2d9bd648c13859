"""The nodes of the export, one after another as Kedro runs them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from kd_pipeline.data.dataset import LabelledImages
from kd_pipeline.errors import CheckpointError, ExportError, ParameterError
from kd_pipeline.evaluation.settings import EvaluationParams
from kd_pipeline.export.settings import Latency, ModelExportParams
from kd_pipeline.export.targets import TARGETS
from kd_pipeline.models.checkpoint import ModelCheckpoint, build_classifier, write_checkpoint
from kd_pipeline.pipelines.model_export.nodes import (
    compare_exports,
    export_models,
    measure_exports,
    publish_exports,
)
from kd_pipeline.tracking.registry import find_champion
from kd_pipeline.tracking.settings import MLflowParams
from kd_pipeline.tracking.store import Store, locate_store

Untrained = Callable[..., ModelCheckpoint]
Outcome = dict[str, Any]

EVALUATION = EvaluationParams(num_bootstrap_samples=100)
FAST = Latency(num_warmup=1, num_repeats=1, batch_sizes=(1,))
STORE = Store(uri="sqlite:///unused.db", experiment="e", artifacts=None)


@pytest.fixture(scope="module")
def student(data: LabelledImages, untrained: Untrained, fitted: Any) -> ModelCheckpoint:
    own = data.provenance
    trained: ModelCheckpoint = fitted(
        untrained(images=own["images"], splits=own["splits"], teacher=["t"]), 40
    )
    return trained


@pytest.fixture
def given(tables: dict[str, Any], tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """What `export_models` takes."""

    def make(**changes: Any) -> dict[str, Any]:
        return tables | {
            "params": ModelExportParams(enabled=True, latency=FAST),
            "folder": tmp_path / "export",
            "trained_models": tmp_path,
            "tracking_store": STORE,
            **changes,
        }

    return make


def finish(arguments: dict[str, Any], exported: list[Any]) -> Outcome:
    """The outputs of the nodes after `export_models`."""
    tables = {name: arguments[name] for name in ("images", "examples", "splits")}
    params = arguments["params"]
    predictions, metrics = measure_exports(
        **tables, exported_models=exported, params=params, evaluation=EVALUATION
    )
    comparison, figure = compare_exports(predictions, metrics, exported, params, EVALUATION)
    report, page = publish_exports(
        **tables,
        exported_models=exported,
        predictions=predictions,
        comparison=comparison,
        figure=b"\x89PNG",
        params=params,
        evaluation=EVALUATION,
        folder=arguments["folder"],
        tracking_store=arguments["tracking_store"],
        run_identity={"group": "g", "env": "base"},
    )
    made = {"figure": figure, "report": report, "page": page}
    return {"metrics": metrics, "comparison": comparison, **made}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_models_on_disk_become_files_with_a_report(
    given: Callable[..., dict[str, Any]], student: ModelCheckpoint, tmp_path: Path
) -> None:
    write_checkpoint(student, tmp_path / "student_kd" / "0")
    arguments = given(params=ModelExportParams(latency=FAST))  # By itself the stage is enabled.
    outcome = finish(arguments, export_models(**arguments))
    assert names(arguments["folder"]) == ["student_kd"]
    assert "model.int8.onnx" in names(arguments["folder"] / "student_kd")
    assert "| distilled (student_kd) | onnx, int8 |" in outcome["report"]
    assert '<img alt="Accuracy against size and latency" src="data:' in outcome["page"]
    assert len(outcome["metrics"]) == 3
    assert outcome["comparison"]["distilled"] == "student_kd"


def test_bounds_that_do_not_hold_leave_no_file(
    given: Callable[..., dict[str, Any]], student: ModelCheckpoint, tmp_path: Path
) -> None:
    write_checkpoint(student, tmp_path / "student_kd" / "0")
    earlier = tmp_path / "export" / "student_kd"
    earlier.mkdir(parents=True)
    (earlier / "model.onnx").write_text("of an earlier run")
    arguments = given(params=ModelExportParams(latency=FAST, budget_bytes=3000))
    with pytest.raises(ExportError, match=r"model\.int8\.onnx .* too many"):
        export_models(**arguments)
    assert names(earlier) == ["model.onnx"]
    assert (earlier / "model.onnx").read_text() == "of an earlier run"


def test_a_file_that_loses_too_much_leaves_tables_of_it_and_no_file(
    given: Callable[..., dict[str, Any]],
    student: ModelCheckpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_checkpoint(student, tmp_path / "student_kd" / "0")
    arguments = given(params=ModelExportParams(latency=FAST, max_accuracy_drop=0.0))
    exported = export_models(**arguments)

    def negated(path: Path, num_threads: int) -> Any:
        """A file that never names the class that the checkpoint names."""

        def run(pixels: Any) -> Any:
            with torch.inference_mode():
                return -build_classifier(student)(torch.from_numpy(pixels)).numpy()

        return run

    broken = replace(TARGETS["onnx"], open=negated)
    monkeypatch.setitem(TARGETS, "onnx", broken)
    with pytest.raises(ExportError, match="student_kd onnx float32 loses"):
        finish(arguments, exported)
    assert [name for name in names(arguments["folder"]) if not name.startswith(".")] == []


def test_the_student_is_registered_with_what_the_champion_is_compared_by(
    given: Callable[..., dict[str, Any]], student: ModelCheckpoint, tmp_path: Path
) -> None:
    write_checkpoint(student, tmp_path / "student_kd" / "0")
    store = locate_store(tmp_path, MLflowParams())
    params = ModelExportParams(latency=FAST, registered_name="student")
    reports = []
    for _ in range(2):
        arguments = given(params=params, tracking_store=store)
        reports.append(finish(arguments, export_models(**arguments))["report"])
    assert "champion: the first of this name" in reports[0]
    assert "not the champion, because the interval must be above zero" in reports[1]
    champion = find_champion(store, "student")
    assert champion is not None
    assert str(champion.version) == "1"
    assert champion.tags["kd.checkpoint"] == student.fingerprint


def test_a_whole_run_exports_where_it_is_enabled(
    given: Callable[..., dict[str, Any]], student: ModelCheckpoint
) -> None:
    models = {"teacher": [student], "student_kd": [student]}
    (exported,) = export_models(**given(), **models)
    assert exported.role == "student_kd"
    arguments = given(params=ModelExportParams(enabled=False))
    assert export_models(**arguments, **models) == []
    outcome = finish(arguments, [])
    assert (outcome["comparison"]["files"], outcome["figure"].axes) == ([], [])
    assert "Nothing was exported" in outcome["report"]


def test_a_model_from_elsewhere_is_exported_under_its_own_role(
    given: Callable[..., dict[str, Any]], untrained: Untrained, tmp_path: Path
) -> None:
    write_checkpoint(untrained(1), tmp_path / "mine")
    source = {"kind": "checkpoint", "folder": str(tmp_path / "mine")}
    arguments = given(params=ModelExportParams(source=source, latency=FAST))
    outcome = finish(arguments, export_models(**arguments))
    assert names(arguments["folder"]) == ["given"]
    assert "| given | onnx, int8 |" in outcome["report"]


def test_what_cannot_be_exported_is_refused_first(
    given: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    with pytest.raises(ParameterError, match=r"`model_export\.models` must .* 'student_kd'"):
        export_models(**given())
    (tmp_path / "student_kd" / "0").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="no readable checkpoint"):
        export_models(**given())
