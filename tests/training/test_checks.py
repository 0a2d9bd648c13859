"""What is tried before the first training: networks and losses, a user's own among them."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from kd_pipeline.data.dataset import LabelledImages
from kd_pipeline.errors import CheckpointError, ParameterError
from kd_pipeline.losses.distillation import SOFT_LOSSES
from kd_pipeline.models.checkpoint import build_classifier, read_checkpoint, write_checkpoint
from kd_pipeline.models.state_folder import StateFolder
from kd_pipeline.training.checks import check_arm, check_student, check_views, try_soft_loss
from kd_pipeline.training.settings import ArmParams, StudentParams
from kd_pipeline.training.students import train_students
from kd_pipeline.views.settings import ViewsParams

CODE = """
from torch import nn

class Net(nn.Sequential):
    def __init__(self, width=4, num_classes=3):
        super().__init__(nn.Flatten(), nn.Linear(64, width), nn.ReLU(),
                         nn.Linear(width, num_classes))
"""


@pytest.fixture
def own_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package of the user's own, where Python finds it."""
    (tmp_path / "users_package").mkdir()
    (tmp_path / "users_package/nets.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path)


def student(**model: Any) -> StudentParams:
    training = {"num_epochs": 1, "device": "cpu", "precision": "float32"}
    model = {"name": "module:users_package.nets:Net"} | model
    return StudentParams(model=model, training=training, num_replicates=1)


@pytest.mark.usefixtures("own_package")
def test_a_network_of_the_users_own_is_trained_and_read_again(
    data: LabelledImages, tmp_path: Path
) -> None:
    """As README has it: `model: {name: "module:my_package.nets:Net", arguments: {...}}`."""
    params = student(arguments={"width": 8})
    check_student(data, params)
    states, arm = StateFolder(tmp_path / "states"), ArmParams()
    (trained,), _ = train_students(data, params, arm, ViewsParams(), teacher=None, states=states)
    write_checkpoint(trained, tmp_path / "student")
    again = build_classifier(read_checkpoint(tmp_path / "student"))
    assert again.network[1].out_features == 8  # type: ignore[index, union-attr]
    pixels = data.images.take(data.ids("test")[:2])
    assert torch.equal(again(pixels), build_classifier(trained)(pixels))
    kept = {path.name for path in (tmp_path / "states").rglob("*")}
    (tmp_path / "users_package/nets.py").write_text(CODE.replace("nn.ReLU()", "nn.GELU()"))
    with pytest.raises(CheckpointError, match="nets:Net has changed since this model was trained"):
        build_classifier(trained)
    train_students(data, params, arm, ViewsParams(), teacher=None, states=states)
    assert {path.name for path in (tmp_path / "states").rglob("*")} > kept  # Begun anew.


@pytest.mark.usefixtures("own_package")
@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            {"arguments": {"num_classes": 7}},
            r"`student\.model` must give a logit for each of 3 classes, got \(2, 7\)",
        ),
        ({"input_size": 4}, r"`student\.model` must take images of 1 x 4 x 4 \(.*shapes cannot"),
        ({"name": "vgg11"}, r"`student\.model` must take images of 3 x 8 x 8 \("),
    ],
)
def test_a_network_that_does_not_fit_the_images_is_refused_before_it_trains(
    model: dict[str, Any], message: str, data: LabelledImages
) -> None:
    with pytest.raises(ParameterError, match=message):
        check_student(data, student(**model))


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("SparseAdam", {}, r"`student\.training\.optimiser\.name` must train by gradients .*dense"),
        ("timm:Adahessian", {}, r"optimiser\.name` must train by gradients alone"),
        ("timm:AdafactorBigVision", {}, r"a state that can be stored \(.*dtype.*AdafactorBigV"),
        ("timm:Adafactor", {}, r"`student\.training\.optimiser\.arguments` must have an `lr`"),
    ],
)
def test_an_optimiser_that_cannot_train_here_is_refused_before_it_trains(
    name: str, arguments: dict[str, Any], message: str, data: LabelledImages
) -> None:
    if name.startswith("timm:"):
        pytest.importorskip("timm")
    optimiser = {"name": name, "arguments": arguments}
    params = StudentParams(
        model={"name": "mlp"},
        training={"num_epochs": 1, "device": "cpu", "optimiser": optimiser},
    )
    with pytest.raises(ParameterError, match=message):
        check_student(data, params)


NUMBERS = st.sampled_from([-1, 0, 1, 2, 10**11, 10**400, 0.5, 1e-9, 1e308, math.inf, math.nan])
ABSURD = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.sampled_from(["", "x", "1e3"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.just("lr"), inner),
    max_leaves=4,
)


def named(table: dict[str, list[str]]) -> st.SearchStrategy[dict[str, Any]]:
    """A block with a name of the table and absurd values for some of its arguments."""
    one = {
        name: st.fixed_dictionaries(
            {
                "name": st.just(name),
                "arguments": st.dictionaries(st.sampled_from(known), ABSURD, max_size=2),
            }
        )
        for name, known in table.items()
    }
    return st.sampled_from(sorted(table)).flatmap(one.__getitem__)


@given(
    model=named({"mlp": ["hidden", "x"], "small_cnn": ["channels", "dropout"]}),
    optimiser=named({"AdamW": ["lr", "betas", "x"], "SGD": ["lr", "nesterov"]}),
    schedule=named({"StepLR": ["step_size"], "ReduceLROnPlateau": ["patience", "mode"]}),
)
@example(  # A KeyError inside torch.
    model={"name": "mlp"},
    optimiser={"name": "AdamW", "arguments": {"betas": {"lr": 1}}},
    schedule={"name": "constant"},
)
@example(
    model={"name": "small_cnn", "arguments": {"channels": [0]}},
    optimiser={"name": "AdamW"},
    schedule={"name": "constant"},
)
@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
def test_arguments_that_nothing_can_take_are_refused_by_name(
    data: LabelledImages, model: Any, optimiser: Any, schedule: Any
) -> None:
    """They are free in YAML: what they mean is known to torch and the architectures alone."""
    training = {"num_epochs": 1, "device": "cpu", "optimiser": optimiser, "schedule": schedule}
    try:
        check_student(data, StudentParams(model=model, training=training))
    except ParameterError as error:
        assert str(error).startswith(("`student.model", "`student.training."))
    else:
        assert model != {"name": "small_cnn", "arguments": {"channels": [0]}}


LOSSES = """
def raises(student_logits, teacher_logits):
    raise KeyError("logits")

def without_a_graph(student_logits, teacher_logits):
    return teacher_logits.sum(dim=1)

def infinite(student_logits, teacher_logits):
    return (student_logits.sum(dim=1) - student_logits.sum(dim=1).detach()).log()
"""


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("raises", r"be computed and differentiated \('logits'\)"),
        ("without_a_graph", r"be computed and differentiated \("),
        ("infinite", "be finite, and its gradients too"),
    ],
)
def test_a_loss_of_the_users_own_is_tried_before_anything_trains(
    function: str,
    message: str,
    data: LabelledImages,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "users_losses.py").write_text(LOSSES)
    monkeypatch.syspath_prepend(tmp_path)
    arm = ArmParams(soft_loss=f"module:users_losses:{function}", soft_weight=0.5)
    with pytest.raises(ParameterError, match=rf"`student_kd\.soft_loss` must {message}"):
        check_arm(data, arm, block="student_kd")
    check_arm(data, arm.model_copy(update={"soft_weight": 0.0}), block="student_kd")


def test_every_loss_of_the_table_can_be_trained_with_three_classes_and_dkd_not_with_two(
    data: LabelledImages,
) -> None:
    for name in SOFT_LOSSES:
        for standardise in (False, True):
            block = {"name": name, "standardise_logits": standardise}
            check_arm(data, ArmParams(soft_loss=block, soft_weight=1.0), block="student_kd")
            if name != "dkd":
                try_soft_loss(ArmParams(soft_loss=block), num_classes=2)
    with pytest.raises(ParameterError, match="`soft_loss` must be another than dkd for two cl"):
        try_soft_loss(ArmParams(soft_loss="dkd"), num_classes=2)


def test_a_stop_after_which_nothing_would_teach_is_refused(data: LabelledImages) -> None:
    arm = ArmParams(soft_weight=1.0, soft_weight_schedule={"stop_fraction": 0.5})
    check_arm(data, arm, block="student_kd")
    unlabelled = replace(data, splits=data.splits.assign(use_label=False))
    with pytest.raises(ParameterError, match=r"`student_kd\.soft_weight_schedule\.stop_fraction`"):
        check_arm(unlabelled, arm, block="student_kd")


@pytest.mark.parametrize(
    ("transform", "name"),
    [
        ({"name": "blur", "kernel_size": 17}, "blur.kernel_size"),
        ({"name": "shift", "max_pixels": 8, "padding": "reflect"}, "shift.max_pixels"),
    ],
)
def test_views_that_need_larger_images_are_refused_by_their_block(
    data: LabelledImages, transform: dict[str, Any], name: str
) -> None:
    transforms = ViewsParams(transforms=[transform]).transforms
    with pytest.raises(ParameterError, match=rf"`teacher\.transforms\.{name}`"):
        check_views(data, transforms, block="teacher")
    check_views(data, ViewsParams(transforms=[{"name": "mixup"}]).transforms, block="views")
