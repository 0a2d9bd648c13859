"""Mistakes in parameters: one line each, with the dotted name and what was meant."""

from typing import Any

import pytest
from kedro.io import DataCatalog, MemoryDataset
from kedro.pipeline import Node, Pipeline

from kd_pipeline.config import Params
from kd_pipeline.errors import SettingsError
from kd_pipeline.hooks.parameters import check_given, check_parameters
from kd_pipeline.training.settings import ArmParams, StudentParams, TeacherParams
from kd_pipeline.views.settings import ViewsParams

KINDS: dict[str, type[Params]] = {
    "student": StudentParams,
    "teacher": TeacherParams,
    "student_kd": ArmParams,
    "views": ViewsParams,
}
STUDENT = {"model": {"name": "mlp"}, "training": {"num_epochs": 1}}


def refusal(given: dict[str, Any]) -> str:
    with pytest.raises(SettingsError) as caught:
        check_parameters(given, KINDS)
    return str(caught.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"trainning": 1},
            "`student.trainning` is not a setting; did you mean `student.training`?",
        ),
        (
            {"num_epochs": 5},
            "`student.num_epochs` is not a setting; did you mean `student.quantisation.num_epochs` "
            "or `student.training.num_epochs`?",
        ),
        (
            {"label_smoothing": 0.1},
            "`student.label_smoothing` is not a setting; did you mean `student_kd.label_smoothing` "
            "or `teacher.label_smoothing`?",
        ),
        ({"transforms": []}, "did you mean `teacher.transforms` or `views.transforms`?"),
        ({"num_views": 2}, "`student.num_views` is not a setting; did you mean `views.num_views`?"),
        ({"zzz": 2}, "legal here: model, num_replicates, pretrained, quantisation, seed, training"),
    ],
)
def test_a_name_that_is_no_setting_is_answered_with_the_nearest_or_where_it_belongs(
    given: dict[str, Any], message: str
) -> None:
    found = refusal({"student": {**STUDENT, **given}})
    assert found.endswith(message)
    assert found.startswith(f"`student.{next(iter(given))}` is not a setting")


def test_a_block_that_no_stage_reads_is_refused() -> None:
    message = "`studnet` is not a setting; did you mean `student`?"
    assert refusal({"studnet": {}}) == message
    assert refusal({"num_views": 1}).endswith("did you mean `views.num_views`?")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"transforms": [{"name": "shift", "max_pixels": 2, "paddin": "zeros"}]},
            "`views.transforms[0].paddin` is not a setting; "
            "did you mean `views.transforms[0].padding`?",
        ),
        (
            {"transforms": [{"name": "shift", "max_pixels": 0}]},
            "`views.transforms[0].max_pixels` must be greater than or equal to 1, got 0",
        ),
        ({"num_views": 2}, "`views.num_views` must be 1 where `transforms` is empty, got 2"),
        ({"seed": "x" * 999}, "`views.seed` must be a valid integer, unable to parse"),
    ],
)
def test_a_broken_rule_has_the_dotted_name_in_front(given: dict[str, Any], message: str) -> None:
    found = refusal({"views": given})
    assert found.startswith(message)
    assert len(found) < 200


def test_a_setting_of_another_kind_of_teacher_is_no_suggestion_to_itself() -> None:
    given = [{"kind": "checkpoint", "folder": "a", "file": "b"}]
    found = refusal({"teacher": {"given": given}})
    assert found == "`teacher.given[0].file` is not a setting of checkpoint"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([{"folder": "a"}], "`teacher.given[0].kind` must be given"),
        ([{"kind": "pickle"}], "`teacher.given[0].kind` must be given as one of 'checkpoint', 't"),
        ([{"kind": "checkpoint"}], "`teacher.given[0].folder` must be given"),
        (5, "`teacher.given` must be a list, got 5"),
        ([7], "`teacher.given[0]` must be a block, got 7"),
    ],
)
def test_entries_of_a_list_are_named_by_position(given: Any, message: str) -> None:
    assert refusal({"teacher": {"given": given}}).startswith(message)


def test_one_value_under_several_names_is_one_line() -> None:
    arm = {"soft_weight": 2}
    with pytest.raises(SettingsError) as caught:
        check_parameters({"a": arm, "b": arm}, {"a": ArmParams, "b": ArmParams})
    assert str(caught.value) == (
        "`a.soft_weight`, `b.soft_weight` must be less than or equal to 1, got 2"
    )


def test_a_missing_block_is_named() -> None:
    pipeline = Pipeline([Node(lambda x, y: x, ["params:views", "params:student"], "z", name="n")])
    catalog = DataCatalog({"params:student": MemoryDataset({})})
    with pytest.raises(SettingsError, match=r"^`views` must be given$"):
        check_given(pipeline, catalog)
