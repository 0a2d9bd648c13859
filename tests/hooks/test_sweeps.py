"""What a trial of a sweep would refuse is refused before the first."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from kedro.io import DataCatalog, MemoryDataset

from kd_pipeline.config import Params
from kd_pipeline.data.images import ImageSet
from kd_pipeline.errors import DataError, ParameterError, SettingsError
from kd_pipeline.hooks.sweeps import check_space, check_sweep, check_swept_students
from kd_pipeline.pipeline_registry import COMPARE_LOSSES, register_pipelines
from kd_pipeline.sweep.settings import SweepParams
from kd_pipeline.training.settings import ArmParams, StudentParams

SPAN = {"low": 1.0, "high": 8.0}
LR = "student.training.optimiser.arguments.lr"
BLOCKS: dict[str, Params] = {
    **{one.name: ArmParams(soft_weight=1.0) for one in COMPARE_LOSSES},
    "student": StudentParams(model={"name": "mlp"}, training={"num_epochs": 1, "device": "cpu"}),
    "student_kd": ArmParams(soft_weight=1.0, temperature=4.0),
    "student_baseline": ArmParams(),
    "student_smoothed": ArmParams(label_smoothing=0.1),
    "student_pseudo": ArmParams(soft_weight=1.0, soft_loss="pseudo_label"),
}


def check(**parameters: Any) -> None:
    names = {name.replace("__", "."): span for name, span in parameters.items()}
    check_space(SweepParams(parameters=names), BLOCKS)


@pytest.mark.parametrize(
    ("name", "span", "message"),
    [
        ("student_kd.temprature", SPAN, "did you mean `student_kd.temperature`?"),
        (
            "studnet_kd.temperature",
            SPAN,
            "`studnet_kd` is not a setting; did you mean",
        ),
        ("student.trainning.batch_size", SPAN, "did you mean `student.training`?"),
        ("views.num_views", SPAN, "`views` is not a setting"),
        ("student_kd.temperature", {"low": 1.0, "high": 200.0}, "must lie in [0.05, 100]"),
        ("student_kd.temperature", {"low": 0.01, "high": 2.0}, "must lie in [0.05, 100]"),
        ("student_kd.soft_weight", SPAN, "must be less than or equal to 1, got"),
        ("student_kd.soft_loss", {"choices": ["kl", "kld"]}, "must be one of"),
        ("student_pseudo.temperature", SPAN, "must be 1 for pseudo_label"),
        ("student.training.batch_size", {"low": 16.0, "high": 64.5}, "must be a valid integer"),
    ],
)
def test_a_name_or_a_value_that_is_no_setting_is_refused(
    name: str, span: dict[str, Any], message: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        check(**{name: span})
    assert str(caught.value).startswith("`sweep.parameters`: ")
    assert message in str(caught.value)


def test_what_a_sweep_may_search() -> None:
    check(
        student_kd__temperature=SPAN,
        student_kd__soft_loss={"choices": ["kl", "logit_mse", {"name": "cross_entropy"}]},
        student__training__batch_size={"low": 16, "high": 64, "integer": True},
        student__training__early_stopping={"choices": [None, {"patience": 3}]},
        student__model__arguments__hidden={"choices": [[8], [16, 16]]},
        student_smoothed__label_smoothing={"low": 0.0, "high": 0.3},
        student_baseline__confidence_penalty={"low": 0.0, "high": 0.3},
    )


def catalog(tmp_path: Path, parameters: dict[str, Any], **block: Any) -> DataCatalog:
    entries: dict[str, Any] = {f"params:{name}": block for name, block in BLOCKS.items()}
    entries |= {"params:sweep": {"parameters": parameters, **block}, "presets": tmp_path}
    return DataCatalog({name: MemoryDataset(value) for name, value in entries.items()})


@pytest.mark.parametrize(
    ("parameters", "block", "error", "message"),
    [
        ({LR: SPAN}, {"arms": ["student_live"]}, ParameterError, "`sweep.arms` must be arms of"),
        (
            {"student_baseline.soft_weight": {"low": 0.1, "high": 0.2}},
            {},
            ParameterError,
            "means nothing to student_baseline",
        ),
        ({"student_kd.nothing": SPAN}, {}, SettingsError, "is not a setting"),
        ({LR: SPAN}, {"preset": "mine"}, DataError, "got mine, which has parameters.yml"),
        ({LR: SPAN}, {}, DataError, "a sweep reads .*soft_targets.*soft_target_caching` makes"),
    ],
)
def test_a_sweep_that_could_not_end_well_is_refused(
    tmp_path: Path,
    parameters: dict[str, Any],
    block: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/parameters.yml").write_text("student: {}\n")
    with pytest.raises(error, match=message):
        check_sweep(register_pipelines()["sweep"], catalog(tmp_path, parameters, **block))


def test_a_sweep_without_optuna_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(SettingsError, match=r"pip install 'kd_pipeline\[sweep\]'"):
        check_sweep(register_pipelines()["sweep"], catalog(tmp_path, {LR: SPAN}))


def test_other_pipelines_are_not_asked(tmp_path: Path) -> None:
    check_sweep(register_pipelines()["distill"], catalog(tmp_path, {"a.b": SPAN}))


@pytest.mark.parametrize(
    ("name", "span", "message"),
    [
        ("student.training.optimiser.arguments.lrr", SPAN, "an argument of AdamW, got 'lrr'"),
        ("student.training.optimiser.name", {"choices": ["AdamW", "Adem"]}, "got 'Adem'"),
        ("student.model.arguments.hiddenn", {"choices": [[8], [9]]}, "hiddenn"),
    ],
)
def test_what_only_torch_would_refuse_is_refused_too(
    tmp_path: Path,
    images: ImageSet,
    examples: pd.DataFrame,
    splits: pd.DataFrame,
    name: str,
    span: dict[str, Any],
    message: str,
) -> None:
    given = catalog(tmp_path, {name: span})
    for entry, value in (("images", images), ("examples", examples), ("splits", splits)):
        given[entry] = MemoryDataset(value, copy_mode="assign")
    with pytest.raises(ParameterError, match=message):
        check_swept_students(given)
