"""Architectures by name: heads sized by the classes, and clear refusals."""

from pathlib import Path
from typing import Any

import pytest
import torch

from kd_pipeline.errors import ParameterError
from kd_pipeline.models.architectures import build_network, num_channels
from kd_pipeline.models.checkpoint import (
    ModelCheckpoint,
    build_classifier,
    build_untrained,
    count_macs,
    count_parameters,
    read_checkpoint,
    write_checkpoint,
)
from kd_pipeline.models.convolutional import CifarResNet, FastCnn
from kd_pipeline.models.preprocessing import Preprocessing
from kd_pipeline.models.settings import Model


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
        ("resnet19", {}, "`name` must be one of .*, got 'resnet19'; legal: .*resnet18"),
        ("small_cn", {}, "legal: .*small_cnn"),
        ("mlp", {"widths": [3]}, "`arguments` must be an argument of mlp, got 'widths'"),
        ("mlp", {"hidden": [0]}, "`arguments.hidden` must be a list of positive widths"),
        ("mlp", {"hidden_dropout": 1.0}, r"hidden_dropout` must be in \[0, 1\)"),
        ("small_cnn", {"channels": [1] * 9}, "channels` must have 1 to 4 stages"),
        ("small_cnn", {"channels": []}, "channels` must have 1 to 4 stages"),
        ("cifar_resnet", {"depth": 21}, "depth` must be 6 n \\+ 2"),
        ("resnet18", {"weights": "DEFAULT"}, "name it under `pretrained.weights`"),
        ("resnet18", {}, "`name` must be an architecture of this project for images of"),
    ],
)
def test_rejects_with_the_name_the_rule_and_the_value(
    name: str, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ParameterError, match=message):
        build_network(name, shape=(1, 8, 8), num_classes=3, arguments=arguments)


@pytest.mark.parametrize(
    ("name", "arguments"), [("resnet18", {"colour": 1}), ("small_cnn", {"dropout": 1.5})]
)
def test_arguments_that_do_not_suit_are_refused(name: str, arguments: dict[str, Any]) -> None:
    """The architecture's own error, of whichever type, is in the message."""
    with pytest.raises(ParameterError, match=r"`arguments` must suit the architecture \(.+\), got"):
        build_network(name, shape=(3, 8, 8), num_classes=3, arguments=arguments)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Model(name="mlpp"), r"`model\.name` must be one of"),
        (Model(name="mlp", arguments={"hidden": [0]}), r"`model\.arguments\.hidden` must be"),
        (Model(name="timm:resnet19"), r"`model\.name` must be a model of timm's"),
        (Model(name="timm:resnet10t", arguments={"num_classes": 4}), "num_classes` must be left"),
    ],
)
def test_a_refused_model_is_named_as_in_yaml(model: Model, message: str) -> None:
    preprocessing = Preprocessing((1, 8, 8), (0.0,), (1.0,))
    with pytest.raises(ParameterError, match=message):
        build_untrained(model, preprocessing, num_classes=3, seed=0)


@pytest.mark.parametrize("path", ["os:system", "subprocess:call", "torch.hub:load", "os:PathLike"])
def test_a_checkpoint_that_names_a_function_does_not_call_it(path: str, tmp_path: Path) -> None:
    witness = tmp_path / "ran"
    argument = {"os:system": "command", "subprocess:call": "args"}.get(path, "repo_or_dir")
    written = ModelCheckpoint(
        architecture=f"module:{path}",
        arguments={argument: f"touch {witness}", **({"shell": True} if "sub" in path else {})},
        class_names=("a", "b"),
        preprocessing=Preprocessing((1, 4, 4), (0.0,), (1.0,)),
        state={"weight": torch.zeros(1)},
    )
    write_checkpoint(written, tmp_path / "model")
    with pytest.raises(ParameterError, match=r"name a class that is a torch\.nn\.Module"):
        build_classifier(read_checkpoint(tmp_path / "model"))
    assert not witness.exists()


def test_a_users_class_is_built_by_import_path() -> None:
    network = build_network(
        "module:torch.nn:Linear",
        shape=(1, 2, 2),
        num_classes=3,
        arguments={"in_features": 4, "out_features": 3},
    )
    assert network(torch.zeros(2, 4)).shape == (2, 3)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("json.__main__:x", "name a module without leading __"),
        ("no_such_module:Net", r"name a class as `package\.module:Class`"),
        ("torch.nn:Missing", r"name a class as `package\.module:Class`"),
        ("torch.nn:Linear", "name a class that takes `arguments`"),
    ],
)
def test_import_paths_that_lead_to_no_network_are_refused(path: str, message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        build_network(f"module:{path}", shape=(1, 2, 2), num_classes=3, arguments={})


def test_timm_loads_from_no_place_that_a_checkpoint_names() -> None:
    pytest.importorskip("timm")
    for name in ("hf-hub:somebody/net", "local-dir:/tmp/net"):
        with pytest.raises(ParameterError, match="be a model of timm's"):
            build_network(f"timm:{name}", shape=(3, 8, 8), num_classes=3, arguments={})
    with pytest.raises(ParameterError, match="name no files"):
        build_network(
            "timm:resnet18",
            shape=(3, 8, 8),
            num_classes=3,
            arguments={"checkpoint_path": "net.pth"},
        )


@pytest.mark.parametrize(("name", "channels"), [("resnet18", 3), ("timm:x", 3), ("mlp", 1)])
def test_libraries_networks_take_colours_where_images_are_grey(name: str, channels: int) -> None:
    assert num_channels(name, 1) == channels
    assert num_channels(name, 4) == 4


def test_resnet_8_is_that_of_mlperf_tiny() -> None:
    """Keras counts 78,666 there: biases of nine convolutions, and statistics as parameters too."""
    arguments = {"depth": 8, "shortcut": "convolution"}
    network = build_network("cifar_resnet", shape=(3, 32, 32), num_classes=10, arguments=arguments)
    counted = {name: p.numel() for name, p in network.named_parameters()}
    weights = sum(n for name, n in counted.items() if not name.endswith("bias"))
    norms = 2 * (3 * 16 + 2 * 32 + 2 * 64)
    assert weights - norms // 2 == 77_360
    biases_there = 3 * 16 + 3 * 32 + 3 * 64 + 10
    assert 77_360 + biases_there + 2 * norms == 78_666
    model = Model(name="cifar_resnet", arguments=arguments)
    preprocessing = Preprocessing((3, 32, 32), (0.5,) * 3, (0.5,) * 3)
    classifier = build_untrained(model, preprocessing, num_classes=10, seed=0)
    assert count_macs(classifier) == pytest.approx(12.5e6, rel=0.01)


def test_a_shortcut_is_padding_or_a_convolution() -> None:
    """With all other weights at zero, a block passes its shortcut on."""
    images = torch.rand(2, 16, 8, 8)
    padded, projected = (
        CifarResNet(shape=(3, 32, 32), num_classes=10, depth=8, shortcut=shortcut).blocks[1]
        for shortcut in ("padding", "convolution")
    )
    for block in (padded, projected):
        torch.nn.init.zeros_(block.norm2.weight)
    expected = torch.cat([images[:, :, ::2, ::2], torch.zeros(2, 16, 4, 4)], dim=1)
    torch.testing.assert_close(padded(images), expected)
    torch.testing.assert_close(projected(images), projected.projection(images).relu())
    with pytest.raises(ParameterError, match=r"`arguments\.shortcut` must be .* got 'pooling'"):
        CifarResNet(shape=(3, 32, 32), num_classes=10, shortcut="pooling")


@pytest.mark.parametrize("channels", [1, 3])
def test_the_fast_cnn_begins_with_orthonormal_filters_and_their_negatives(channels: int) -> None:
    network = FastCnn(shape=(channels, 32, 32), num_classes=10, widths=(8, 12, 16))
    filters = network.features[0].weight.detach().flatten(1)
    half = len(filters) // 2
    assert half == 4 * channels
    torch.testing.assert_close(filters[:half] @ filters[:half].T, torch.eye(half))
    torch.testing.assert_close(filters[half:], -filters[:half])
    # The first sums a patch over all channels, the others are differences: they sum to zero.
    sums = filters[:half].sum(dim=1)
    assert int((sums.abs() > 1e-5).sum()) == 1


def test_the_fast_cnn_takes_images_of_25_pixels_or_more() -> None:
    for size in (25, 32, 40):
        network = FastCnn(shape=(3, size, size), num_classes=7, widths=(8, 12, 16)).eval()
        assert network(torch.rand(2, 3, size, size)).shape == (2, 7)
    with pytest.raises(ParameterError, match="24x24: this one needs 25x25"):
        FastCnn(shape=(3, 24, 24), num_classes=7)
    with pytest.raises(ParameterError, match=r"`arguments\.widths` must be three positive numbers"):
        FastCnn(shape=(3, 32, 32), num_classes=7, widths=(8, 16))


def test_convolutions_of_the_fast_cnn_begin_as_the_identity() -> None:
    network = FastCnn(shape=(3, 32, 32), num_classes=10, widths=(8, 12, 16))
    second = network.features[7]  # From 8 channels to 8.
    images = torch.rand(2, 8, 5, 5)
    torch.testing.assert_close(second(images), images)


def test_an_import_path_is_code_and_only_the_class_is_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As README says: importing runs the module, before the class is refused."""
    witness = tmp_path / "ran"
    code = f"open({str(witness)!r}, 'w').close()\n\ndef build(): ...\n"
    (tmp_path / "module_that_acts.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ParameterError, match=r"name a class that is a torch\.nn\.Module"):
        build_network("module:module_that_acts:build", shape=(1, 2, 2), num_classes=3, arguments={})
    assert witness.exists()
