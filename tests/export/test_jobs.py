"""All files of all models asked for, within their budget."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kd_pipeline.data.dataset import LabelledImages
from kd_pipeline.errors import ExportError, ParameterError
from kd_pipeline.export import targets
from kd_pipeline.export.jobs import (
    ExportedModel,
    check_budget,
    check_exportable,
    check_weights_fit,
    export_models,
)
from kd_pipeline.export.settings import ModelExportParams
from kd_pipeline.models.checkpoint import ModelCheckpoint, build_untrained
from kd_pipeline.models.preprocessing import Preprocessing
from kd_pipeline.models.settings import Model


def test_every_replicate_has_its_files_and_one_is_the_best(exported: list[ExportedModel]) -> None:
    assert [(model.role, model.replicate) for model in exported] == [
        ("student_kd", 0),
        ("student_kd", 1),
    ]
    assert sum(model.is_best for model in exported) == 1
    for model in exported:
        assert set(model.files) == {("onnx", "float32"), ("onnx", "int8")}
        assert all(f.path.stat().st_size == f.sizes["size_bytes"] for f in model.files.values())
        assert model.facts["parameters"] == 4 * 9 + 8 + 4 * 8 * 9 + 16 + 8 * 3 + 3
        assert not math.isnan(model.validation_accuracy)


def test_a_file_beyond_its_budget_is_refused_with_by_how_much(
    exported: list[ExportedModel],
) -> None:
    files = exported[0].files
    size = files["onnx", "int8"].sizes["size_bytes"]
    check_budget(files, ModelExportParams(budget_bytes=size))
    with pytest.raises(ExportError, match=r"model\.int8\.onnx .* 1 too many"):
        check_budget(files, ModelExportParams(budget_bytes=size - 1))


def test_a_budget_below_the_weights_is_refused_before_anything_is_made(
    data: LabelledImages, students: list[ModelCheckpoint], tmp_path: Path
) -> None:
    num_weights = 4 * 9 + 4 * 8 * 9 + 8 * 3
    check_weights_fit(students[0], ModelExportParams(budget_bytes=num_weights))
    params = ModelExportParams(models=("s",), budget_bytes=num_weights - 1)
    with pytest.raises(ParameterError, match=f"must be at least the {num_weights} weights"):
        export_models(data, {"s": students}, params, folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_could_not_be_exported_after_training_is_refused_before(
    data: LabelledImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: Any) -> Any:
        raise ExportError("Gelu is not among the operators")

    model = Model(name="mlp", arguments={"hidden": [4]})
    preprocessing = Preprocessing((1, 8, 8), (0.5,), (0.5,))
    initial = build_untrained(model, preprocessing, num_classes=3, seed=0)
    fake = targets.TARGETS["onnx"].__class__(files={}, export=refuse, open=refuse)
    monkeypatch.setitem(targets.TARGETS, "onnx", fake)
    with pytest.raises(ExportError, match="Gelu"):
        check_exportable(initial, model, data, ModelExportParams())


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ({"packages": ("no_such_package",), "extra": "some"}, r"pip install 'kd_pipeline\[some\]'"),
        ({"programs": ("no-such-compiler",)}, "needs no-such-compiler"),
    ],
)
def test_a_target_without_what_it_needs_is_refused(
    missing: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any) -> Any:
        raise AssertionError

    make: Callable[..., Any] = targets.TARGETS["onnx"].__class__
    fake = make(files={}, export=never, open=never, **missing)
    monkeypatch.setitem(targets.TARGETS, "onnx", fake)
    with pytest.raises(ExportError, match=message):
        targets.check_installed(["onnx"])


def test_every_format_that_settings_name_is_there() -> None:
    from typing import get_args

    from kd_pipeline.export.settings import TargetName

    assert set(get_args(TargetName)) == set(targets.TARGETS)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"models": ()}, "at least 1 item"),
        ({"models": ("a", "a")}, "must name each once"),
        ({"targets": ("tflite",)}, "'onnx', 'executorch' or 'c'"),
        ({"max_accuracy_drop": 1.5}, "less than or equal to 1"),
        ({"budget_bytes": 0}, "greater than or equal to 1"),
        ({"targets": ("c",), "registered_name": "s"}, "must be null unless `targets` hold onnx"),
        ({"models": ("teacher",), "registered_name": "s"}, "null where `models` hold no student"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelExportParams(**settings)
