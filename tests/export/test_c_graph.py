"""Each operator of a quantised graph, in C, against onnxruntime's run of the same graph."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from kd_pipeline.errors import ExportError
from kd_pipeline.export.c_code import write_model
from kd_pipeline.export.c_graph import read_graph
from kd_pipeline.export.c_layers import IntegerNetwork
from kd_pipeline.export.c_run import open_model
from kd_pipeline.export.onnx_files import quantise

SHAPE = (4, 6, 7)
RNG = np.random.default_rng(0)
CONSTANTS = {
    "scale": np.full((1, 4, 1, 1), 1 / 64, np.float32),
    "shift": np.array([-2.0, -1.5, -1.0, -2.5], np.float32).reshape(1, 4, 1, 1),
    "stem": RNG.normal(size=(4, 4, 1, 1)).astype(np.float32),
    "dense": RNG.normal(size=(5, 4, 3, 3)).astype(np.float32),
    "small": RNG.normal(size=(8, 4, 1, 1)).astype(np.float32),
    "grouped": RNG.normal(size=(6, 2, 3, 2)).astype(np.float32),
    "depthwise": RNG.normal(size=(4, 1, 3, 3)).astype(np.float32),
    "bias5": RNG.normal(size=5).astype(np.float32),
    "six": np.array(1.5, np.float32),
    "zero": np.array(-0.5, np.float32),
    "starts": np.array([0]),
    "ends": np.array([2**40]),
    "axis2": np.array([2]),
    "axis3": np.array([3]),
    "faded": RNG.normal(size=(5, 4, 3, 3)).astype(np.float32)
    * np.array([1, 1e-9, 1, 1, 1], np.float32).reshape(5, 1, 1, 1),
    "two": np.array([2]),
    "pads": np.array([0, 0, 0, 0, 0, 3, 0, 0]),
    "space": np.array([2, 3]),
    "flat": np.array([-1, 4 * 6 * 7]),
    "product": RNG.normal(size=(4 * 6 * 7, 3)).astype(np.float32),
}

Nodes = list[tuple[str, list[str], str, dict[str, Any]]]
"""Operator, inputs, output, attributes; from `images` to `features`."""

OPERATORS: dict[str, Nodes] = {
    "convolution": [
        ("Conv", ["images", "dense", "bias5"], "features", {"pads": [1] * 4, "strides": [2, 2]})
    ],
    "a nearly dead channel": [("Conv", ["images", "faded", "bias5"], "features", {})],
    "uneven padding": [("Conv", ["images", "dense"], "features", {"pads": [0, 1, 2, 0]})],
    "pointwise": [("Conv", ["images", "small"], "features", {"strides": [2, 1]})],
    "grouped": [("Conv", ["images", "grouped"], "features", {"group": 2, "pads": [1, 0, 1, 1]})],
    "depthwise": [("Conv", ["images", "depthwise"], "features", {"group": 4, "pads": [1] * 4})],
    "relu": [
        ("Conv", ["images", "small"], "linear", {}),
        ("Relu", ["linear"], "features", {}),
    ],
    "clip": [
        ("Conv", ["images", "small"], "linear", {}),
        ("Clip", ["linear", "zero", "six"], "features", {}),
    ],
    "relu of what is quantised": [
        ("MaxPool", ["images"], "pooled", {"kernel_shape": [2, 2]}),
        ("Relu", ["pooled"], "features", {}),
    ],
    "sum": [
        ("Conv", ["images", "depthwise"], "left", {"group": 4, "pads": [1] * 4}),
        ("Add", ["left", "images"], "features", {}),
    ],
    "max pool": [
        (
            "MaxPool",
            ["images"],
            "features",
            {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 0, 1]},
        )
    ],
    # Of an odd area: onnxruntime rounds halves to even, C rounds them up.
    "average pool": [
        ("AveragePool", ["images"], "features", {"kernel_shape": [5, 3], "strides": [1, 2]})
    ],
    "padded average pool": [
        (
            "AveragePool",
            ["images"],
            "features",
            {"kernel_shape": [3, 3], "pads": [1] * 4, "count_include_pad": 1},
        )
    ],
    "global average": [("GlobalAveragePool", ["images"], "features", {})],
    "reduce mean": [("ReduceMean", ["images", "space"], "features", {"keepdims": 1})],
    "strided shortcut": [
        ("Slice", ["images", "starts", "ends", "axis2", "two"], "rows", {}),
        ("Slice", ["rows", "starts", "ends", "axis3", "two"], "both", {}),
        ("Pad", ["both", "pads"], "features", {}),
    ],
    "identity": [("Identity", ["images"], "features", {})],
}


def graph(nodes: Nodes, *, head: bool = True) -> onnx.ModelProto:
    """Normalisation, the nodes, and a 1x1 convolution of everything to three logits."""
    before: Nodes = [
        ("Cast", ["pixels"], "floats", {"to": TensorProto.FLOAT}),
        ("Mul", ["floats", "scale"], "scaled", {}),
        ("Add", ["scaled", "shift"], "normalised", {}),
        ("Conv", ["normalised", "stem"], "images", {}),
    ]
    rest: Nodes = [*before, *nodes]
    constants = dict(CONSTANTS)
    if head:
        probe = made(rest, constants, "features", ["batch", None, None, None])
        session = onnxruntime.InferenceSession(probe.SerializeToString())
        shape = session.run(None, {"pixels": np.zeros((1, *SHAPE), np.uint8)})[0].shape
        weights = np.random.default_rng(1).normal(size=(int(np.prod(shape)), 3))
        constants["head"] = weights.astype(np.float32)
        rest += [
            ("Flatten", ["features"], "vector", {}),
            ("Gemm", ["vector", "head"], "logits", {}),
        ]
    return made(rest, constants, "logits", ["batch", 3])


def made(
    nodes: Nodes, constants: dict[str, np.ndarray], output: str, shape: list[Any]
) -> onnx.ModelProto:
    used = {name for _, inputs, _, _ in nodes for name in inputs}
    return helper.make_model(
        helper.make_graph(
            [helper.make_node(op, i, [o], name=o, **given) for op, i, o, given in nodes],
            "net",
            [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["batch", *SHAPE])],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, shape)],
            [numpy_helper.from_array(v, k) for k, v in constants.items() if k in used],
        ),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=9,
    )


def pixels(num_images: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(num_images)
    return torch.randint(0, 256, (num_images, *SHAPE), dtype=torch.uint8, generator=generator)


def run_onnx(model: onnx.ModelProto, images: np.ndarray) -> np.ndarray:
    """Without optimisations: they change the order of rounding."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    logits: np.ndarray = session.run(None, {"pixels": images})[0]
    return logits


def run_c(network: IntegerNetwork, images: np.ndarray, folder: Path) -> np.ndarray:
    file = folder / "model.c"
    names = ["a"] * network.logits.size
    write_model(network, file, class_names=names, metadata={})
    return open_model(file, 1)(images)


@pytest.mark.parametrize("name", OPERATORS)
def test_an_operator_in_c_is_onnxruntimes(name: str, tmp_path: Path) -> None:
    model = quantise(graph(OPERATORS[name]), pixels(40))
    network, images = read_graph(model), pixels(50).numpy()
    steps = (run_c(network, images, tmp_path) - run_onnx(model, images)) / network.logits.scale
    assert np.abs(steps).max() < 1.5
    assert np.mean(np.abs(steps) < 0.5) > 0.97


def test_a_product_takes_features_in_the_order_of_the_graph(tmp_path: Path) -> None:
    nodes: Nodes = [
        ("Reshape", ["images", "flat"], "vector", {}),
        ("MatMul", ["vector", "product"], "logits", {}),
    ]
    model = quantise(graph(nodes, head=False), pixels(40))
    network, images = read_graph(model), pixels(50).numpy()
    steps = (run_c(network, images, tmp_path) - run_onnx(model, images)) / network.logits.scale
    assert np.abs(steps).max() < 1.5
    assert np.mean(np.abs(steps) < 0.5) > 0.97


@pytest.mark.parametrize(("operator", "bounds"), [("Relu", []), ("Clip", ["zero", "six"])])
def test_a_clamp_holds_where_the_range_is_wider(
    operator: str, bounds: list[str], tmp_path: Path
) -> None:
    """onnxruntime drops clamps that the ranges imply; fine-tuned ranges need not imply them."""
    model = quantise(graph(OPERATORS["sum"]), pixels(40))
    (last,) = (node for node in model.graph.node if node.input[0] == "features")
    last.input[0] = "clamped"
    clamp = helper.make_node(operator, ["features", *bounds], ["clamped"])
    model.graph.node.insert(list(model.graph.node).index(last), clamp)
    model.graph.initializer.extend(numpy_helper.from_array(CONSTANTS[b], b) for b in bounds)
    network, images = read_graph(model), pixels(50).numpy()
    steps = (run_c(network, images, tmp_path) - run_onnx(model, images)) / network.logits.scale
    assert np.abs(steps).max() < 1.5
    assert np.mean(np.abs(steps) < 0.5) > 0.97


def test_the_preprocessing_is_a_table_worked_by_hand() -> None:
    network = read_graph(quantise(graph(OPERATORS["convolution"]), pixels(40)))
    first = network.layers[0]
    levels = np.arange(256) / 64 + CONSTANTS["shift"].reshape(4, 1).astype(np.float64)
    by_hand = np.rint(levels / first.output.scale) + first.output.zero_point
    np.testing.assert_array_equal(first.table, np.clip(by_hand, -128, 127))
    assert network.input_shape == SHAPE


REFUSED: dict[str, tuple[Nodes, str]] = {
    "unknown": (
        [("Gelu", ["images"], "g", {}), ("Sigmoid", ["g"], "features", {})],
        r"operators that the target `c` has, got Gelu, Sigmoid; legal: Add, ",
    ),
    "resize": (
        [("Resize", ["images", "", "scales"], "features", {"mode": "linear"})],
        r"leave Resize out for the target `c`: give it images of the network's size, got Resize",
    ),
    "dilation": (
        [("Conv", ["images", "dense"], "features", {"dilations": [2, 2]})],
        r"Conv 'features' must have dilations \[1, 1\] for the target `c`, got \[2, 2\]",
    ),
    "part of the rows": (
        [("Slice", ["images", "two", "ends", "axis2"], "features", {})],
        r"Slice 'features' must keep every n-th row or column from the first",
    ),
    "padding of space": (
        [("Pad", ["images", "around"], "features", {})],
        r"Pad 'features' must pad channels after the last one .* got \[0, 0, 1, 1, 0, 0, 1, 1\]",
    ),
    "mean of what is not padding": (
        [("AveragePool", ["images"], "features", {"kernel_shape": [3, 3], "pads": [1] * 4})],
        r"AveragePool 'features' must count its padding",
    ),
    "mean of channels": (
        [("ReduceMean", ["images", "axis2"], "features", {"keepdims": 1})],
        r"ReduceMean 'features' must average height and width for the target `c`, got \[2\]",
    ),
    "sum with a constant": (
        [("Conv", ["images", "small"], "linear", {}), ("Add", ["linear", "six"], "features", {})],
        r"Add 'features' must have int8 inputs for the target `c`, got a constant",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses_by_the_operators_name(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CONSTANTS, "scales", np.array([1, 1, 0.5, 0.5], np.float32))
    monkeypatch.setitem(CONSTANTS, "around", np.array([0, 0, 1, 1, 0, 0, 1, 1]))
    nodes, message = REFUSED[name]
    with pytest.raises(ExportError, match=message):
        read_graph(quantise(graph(nodes), pixels(8)))


def test_refuses_what_is_not_quantised() -> None:
    with pytest.raises(ExportError, match="must be followed by int8 layers, got Conv"):
        read_graph(graph(OPERATORS["convolution"]))


def test_refuses_uint8_activations() -> None:
    model = quantise(graph(OPERATORS["relu"]), pixels(8))
    for tensor in model.graph.initializer:
        if tensor.name == "features_zero_point":
            tensor.CopyFrom(numpy_helper.from_array(np.array(3, np.uint8), tensor.name))
    with pytest.raises(ExportError, match=r"one scale and one int8 zero point .*\('uint8', 1\)"):
        read_graph(model)
