"""The nodes of the export, one after another as Kedro runs them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kd_pipeline.data.dataset import LabelledImages
from kd_pipeline.errors import CheckpointError, ExportError, ParameterError
from kd_pipeline.evaluation.settings import EvaluationParams
from kd_pipeline.export.settings import Latency, ModelExportParams
from kd_pipeline.models.checkpoint import ModelCheckpoint, write_checkpoint
from kd_pipeline.pipelines.model_export.nodes import (
    compare_exports,
    export_models,
    measure_exports,
    publish_exports,
)
from kd_pipeline.tracking.store import Store

Untrained = Callable[..., ModelCheckpoint]
Outcome = dict[str, Any]

EVALUATION = EvaluationParams(num_bootstrap_samples=100)
FAST = Latency(num_warmup=1, num_repeats=1, batch_sizes=(1,))
STORE = Store(uri="sqlite:///unused.db", experiment="e", artifacts=None)


@pytest.fixture(scope="module")
def student(data: LabelledImages, untrained: Untrained) -> ModelCheckpoint:
    own = data.provenance
    return untrained(
        images=own["images"], splits=own["splits"], image_shape=[1, 8, 8], teacher=["t"]
    )


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
    report = publish_exports(
        **tables,
        exported_models=exported,
        predictions=predictions,
        comparison=comparison,
        params=params,
        evaluation=EVALUATION,
        folder=arguments["folder"],
        tracking_store=arguments["tracking_store"],
        run_identity={"group": "g", "env": "base"},
    )
    return {"metrics": metrics, "comparison": comparison, "figure": figure, "report": report}


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
    assert len(outcome["metrics"]) == 3
    assert outcome["comparison"]["distilled"] == "student_kd"


def test_bounds_that_do_not_hold_leave_no_file(
    given: Callable[..., dict[str, Any]], student: ModelCheckpoint, tmp_path: Path
) -> None:
    write_checkpoint(student, tmp_path / "student_kd" / "0")
    earlier = tmp_path / "export" / "student_kd"
    earlier.mkdir(parents=True)
    (earlier / "model.onnx").write_text("of an earlier run")
    arguments = given(params=ModelExportParams(latency=FAST, budget_bytes=4000))
    with pytest.raises(ExportError, match=r"model\.int8\.onnx .* too many"):
        export_models(**arguments)
    assert names(earlier) == ["model.onnx"]
    assert (earlier / "model.onnx").read_text() == "of an earlier run"


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
