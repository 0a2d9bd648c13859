"""What the last hop of a chain would refuse is refused before the first model trains."""

from typing import Any

import pandas as pd
import pytest

from kd_pipeline.data.images import ImageSet
from kd_pipeline.errors import ParameterError
from kd_pipeline.hooks.chain_guard import check_hops
from kd_pipeline.training.data import TrainingData

TRAINING = {"num_epochs": 2, "device": "cpu"}


class Parameters:
    """The parameters of a catalog."""

    def __init__(self, **blocks: Any) -> None:
        usual: dict[str, Any] = {
            "student": {"model": {"name": "mlp"}, "training": TRAINING},
            "views": {},
            "soft_target_caching": {},
            "soft_targets": {},
        }
        self.blocks = usual | blocks

    def load(self, name: str) -> Any:
        return self.blocks[name.removeprefix("params:")]


def hop(name: str = "small", **settings: Any) -> dict[str, Any]:
    return {"name": name, "model": {"name": "mlp"}, **settings}


@pytest.fixture
def data(images: ImageSet, examples: pd.DataFrame, splits: pd.DataFrame) -> TrainingData:
    return TrainingData(images, examples, splits)


def check(data: TrainingData, *hops: dict[str, Any], **blocks: Any) -> None:
    check_hops(data, Parameters(chain={"hops": [hop("first"), *hops]}, **blocks))  # type: ignore[arg-type]


def test_hops_that_can_be_trained_are_let_in(data: TrainingData) -> None:
    check(data, hop(training=TRAINING | {"optimiser": {"name": "SGD", "arguments": {"lr": 0.1}}}))


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"model": {"name": "mlpp"}}, "chain.hops.small"),
        ({"model": {"name": "mlp", "arguments": {"hiden": [8]}}}, "chain.hops.small"),
        (
            {"training": TRAINING | {"optimiser": {"name": "AdamWW"}}},
            "chain.hops.small.training",
        ),
        (
            {"training": TRAINING | {"schedule": {"name": "cosin"}}},
            "chain.hops.small.training",
        ),
    ],
)
def test_a_hop_that_cannot_be_built_is_refused_by_name(
    settings: dict[str, Any], name: str, data: TrainingData
) -> None:
    with pytest.raises(ParameterError, match=f"`{name}"):
        check(data, hop(**settings))


def test_a_hop_without_training_of_its_own_has_the_students(data: TrainingData) -> None:
    student = {"model": {"name": "mlp"}, "training": TRAINING | {"optimiser": {"name": "AdamWW"}}}
    with pytest.raises(ParameterError, match=r"`chain.hops.first.training"):
        check(data, student=student)


def test_fresh_views_are_not_in_a_cache(data: TrainingData) -> None:
    with pytest.raises(ParameterError, match=r"`views.num_views` must be a number"):
        flip = {"name": "horizontal_flip", "probability": 0.5}
        check(data, views={"num_views": None, "transforms": [flip]})


@pytest.mark.parametrize(
    ("settings", "name"),
    [({"temperature": 2.0}, "temperature"), ({"soft_loss": "logit_mse"}, "soft_loss")],
)
def test_a_top_k_cache_answers_at_its_own_temperature_only(
    settings: dict[str, Any], name: str, data: TrainingData
) -> None:
    caching = {"top_k": 2, "temperature": 1.0}
    check(data, hop(), soft_target_caching=caching)
    with pytest.raises(ParameterError, match=rf"`chain.hops.small.{name}`"):
        check(data, hop(**settings), soft_target_caching=caching)


def test_a_top_k_cache_of_several_cannot_be_mixed(data: TrainingData) -> None:
    caching = {"top_k": 2, "temperature": 1.0}
    with pytest.raises(ParameterError, match=r"`chain.hops.many.num_members` must be 1"):
        check(data, hop("many", num_members=2), hop(), soft_target_caching=caching)
