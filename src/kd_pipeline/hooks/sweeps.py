"""Checks ahead of a sweep: what one of its trials would refuse is refused before the first."""

from collections.abc import Iterator
from functools import partial
from typing import Any

from kedro.io import CatalogProtocol
from kedro.pipeline import Pipeline

from kd_pipeline.config import Params
from kd_pipeline.errors import DataError, ParameterError, SettingsError
from kd_pipeline.hooks.guards import StudentNode, check_top_k, load_block, student_nodes
from kd_pipeline.hooks.parameters import check_parameters
from kd_pipeline.losses.settings import ObjectiveParams
from kd_pipeline.sweep.settings import SHARED, SweepParams
from kd_pipeline.sweep.space import apply_values, put
from kd_pipeline.training.settings import ArmParams, StudentParams

Catalog = CatalogProtocol[Any, Any]

_SWEEP = "params:sweep"
_MAKE = "kedro run --pipelines=data_ingest,transfer_split,teacher_training,soft_target_caching"
_OF_LABELS = ("label_smoothing", "confidence_penalty")
"""What changes the loss of an arm that learns from labels alone."""


def check_sweep(pipeline: Pipeline, catalog: Catalog) -> None:
    """Refuse a sweep that could not end well.

    Raises:
        SettingsError: If Optuna is missing, or a name or a value in `sweep.parameters` is no legal
            one of its block.
        ParameterError: If an arm is unknown, or has no use for a parameter.
        DataError: If what earlier stages make is missing, or the preset's folder is not a sweep's.
    """
    if _SWEEP not in pipeline.inputs():
        return
    from kd_pipeline.sweep.results import check_preset  # Imports torch.
    from kd_pipeline.sweep.storage import check_installed

    check_installed()
    sweep, students = load_block(catalog, "sweep", SweepParams), student_nodes(pipeline)
    names = [student.name for student in students]
    for arm in sweep.arms:
        if arm not in names:
            rule = "be arms of `distill` or `compare_losses`"
            raise ParameterError("sweep.arms", rule, arm, legal=names)
    blocks: dict[str, Params] = {name: load_block(catalog, name, ArmParams) for name in names}
    check_space(sweep, {SHARED: load_block(catalog, SHARED, StudentParams), **blocks})
    for student in students:
        _check_use(student, sweep)
    check_preset(catalog.load("presets"), sweep.preset)
    inputs = sorted(name for name in pipeline.inputs() if not name.startswith("params:"))
    if missing := [name for name in inputs if not catalog.exists(name)]:
        raise DataError(f"a sweep reads {', '.join(missing)}, which `{_MAKE}` makes")
    _check_top_k(students, sweep, catalog)


def check_space(sweep: SweepParams, blocks: dict[str, Params]) -> None:
    """Refuse a name that is no setting, and a range beyond what its setting may be.

    Raises:
        SettingsError: With the nearest legal name, or the rule.
    """
    kinds = {name: type(block) for name, block in blocks.items()}
    given = {name: block.model_dump(mode="json") for name, block in blocks.items()}
    for name in sweep.parameters:
        for changed in _extremes(sweep, given, name):
            try:
                check_parameters(changed, kinds)
            except SettingsError as error:
                raise SettingsError(f"`sweep.parameters`: {error}") from error


def _extremes(sweep: SweepParams, given: dict[str, Any], name: str) -> Iterator[dict[str, Any]]:
    """The blocks with each extreme value of a parameter, and with nothing that it rules out."""
    arm = name.partition(".")[0]
    loss = f"{arm}.soft_loss"
    for value in sweep.parameters[name].extremes:
        if loss in sweep.parameters and name != loss and arm in given:
            # Any loss may be drawn beside it: the default one has every setting of the arm.
            yield put({**given, arm: {**given[arm], "soft_loss": "kl"}}, {name: value})
        elif name == loss and arm in given:
            place = put if _is_illegal(value) else partial(apply_values, arm=arm)
            yield place(given, values={name: value})
        else:
            yield put(given, {name: value})


def _is_illegal(soft_loss: Any) -> bool:
    try:
        ObjectiveParams(soft_loss=soft_loss)
    except ValueError:
        return True
    return False


def _check_use(student: StudentNode, sweep: SweepParams) -> None:
    if student.cache is None:
        for name in sweep.parameters:
            block, _, setting = name.partition(".")
            if block == student.name and setting not in _OF_LABELS:
                rule = f"leave out what means nothing to {block}, which learns from labels alone"
                raise ParameterError("sweep.parameters", rule, name)


def _check_top_k(students: list[StudentNode], sweep: SweepParams, catalog: Catalog) -> None:
    """Whether a top-k cache serves every loss and temperature that may be drawn."""
    for student in students:
        if student.cache is None or student.name not in sweep.arms:
            continue
        cached_at = catalog.load(student.cache).manifest.encoding.temperature
        given = {student.name: load_block(catalog, student.name, ArmParams).model_dump(mode="json")}
        for name in sweep.parameters if cached_at is not None else ():
            if name.startswith(f"{student.name}."):
                for changed in _extremes(sweep, given, name):
                    arm = ArmParams.model_validate(changed[student.name])
                    check_top_k(student.name, arm, cached_at)


def check_swept_students(catalog: Catalog) -> None:
    """Build the student with each extreme value of the shared parameters.

    Raises:
        ParameterError: Naming the parameter, such as an argument that an optimiser does not have.
    """
    from kd_pipeline.data.dataset import LabelledImages
    from kd_pipeline.training.checks import check_student

    data = LabelledImages(*(catalog.load(name) for name in ("images", "examples", "splits")))
    sweep = load_block(catalog, "sweep", SweepParams)
    given = {SHARED: load_block(catalog, SHARED, StudentParams).model_dump(mode="json")}
    for name in sweep.parameters:
        if name.startswith(f"{SHARED}."):
            for changed in _extremes(sweep, given, name):
                check_student(data, StudentParams.model_validate(changed[SHARED]))
