"""Architectures by name: heads sized by the classes, and clear refusals."""

from typing import Any

import pytest
import torch

from kd_pipeline.errors import ParameterError
from kd_pipeline.models.architectures import build_network, num_channels
from kd_pipeline.models.checkpoint import count_parameters


@pytest.mark.parametrize(
    ("name", "arguments", "shape"),
    [
        ("mlp", {"hidden": [16, 8], "hidden_dropout": 0.1, "input_dropout": 0.1}, (1, 8, 8)),
        ("mlp", {"hidden": []}, (3, 4, 4)),
        (
            "small_cnn",
            {"channels": [4, 8, 8], "convolutions_per_stage": 2, "dropout": 0.1},
            (3, 9, 9),
        ),
        ("cifar_resnet", {"depth": 8}, (3, 32, 32)),
        ("cifar_resnet", {"depth": 14, "width_factor": 2}, (1, 16, 16)),
        ("mobilenet_v3_small", {}, (3, 64, 64)),
        ("resnet18", {}, (3, 32, 32)),
        ("googlenet", {}, (3, 64, 64)),
    ],
)
@pytest.mark.filterwarnings("ignore:The default weight initialization of GoogleNet")
def test_the_head_is_sized_by_the_classes(
    name: str, arguments: dict[str, Any], shape: tuple[int, int, int]
) -> None:
    network = build_network(name, shape=shape, num_classes=7, arguments=arguments)
    logits = network(torch.rand(2, *shape))
    assert logits.shape == (2, 7)


def test_parameter_counts_are_the_papers() -> None:
    """ResNet-20 and -110 of He et al. 2015, table 6: 0.27 and 1.7 million."""
    for depth, millions in ((20, 0.27), (110, 1.7)):
        network = build_network(
            "cifar_resnet", shape=(3, 32, 32), num_classes=10, arguments={"depth": depth}
        )
        assert count_parameters(network) / 1e6 == pytest.approx(millions, abs=0.05)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("resnet19", {}, "`model.name` must be one of .*, got 'resnet19'; legal: .*resnet18"),
        ("small_cn", {}, "legal: .*small_cnn"),
        ("mlp", {"widths": [3]}, "`model.arguments` must be an argument of mlp, got 'widths'"),
        ("mlp", {"hidden": [0]}, "`model.arguments.hidden` must be a list of positive widths"),
        ("mlp", {"hidden_dropout": 1.0}, r"hidden_dropout` must be in \[0, 1\)"),
        ("small_cnn", {"channels": [1] * 9}, "channels` must have 1 to 4 stages"),
        ("small_cnn", {"channels": []}, "channels` must have 1 to 4 stages"),
        ("cifar_resnet", {"depth": 21}, "depth` must be 6 n \\+ 2"),
        ("resnet18", {"weights": "DEFAULT"}, "name it under `pretrained.weights`"),
        ("resnet18", {}, "`model.name` must be an architecture of this project for images of"),
    ],
)
def test_rejects_with_the_name_the_rule_and_the_value(
    name: str, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ParameterError, match=message):
        build_network(name, shape=(1, 8, 8), num_classes=3, arguments=arguments)


def test_arguments_that_an_architecture_of_torchvisions_does_not_take_are_refused() -> None:
    with pytest.raises(ParameterError, match=r"`model\.arguments` must suit the architecture"):
        build_network("resnet18", shape=(3, 8, 8), num_classes=3, arguments={"colour": 1})


@pytest.mark.parametrize(("name", "channels"), [("resnet18", 3), ("timm:x", 3), ("mlp", 1)])
def test_libraries_networks_take_colours_where_images_are_grey(name: str, channels: int) -> None:
    assert num_channels(name, 1) == channels
    assert num_channels(name, 4) == 4
