"""From a statically quantised ONNX graph to integer layers.

The graph is one of onnxruntime's `quantize_static` in the QDQ format: activations int8 with one
scale and zero point, weights int8 and symmetric. Its QuantizeLinear nodes are the only source of
scales, so that fine-tuned and post-training quantisation take the same way.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kd_pipeline.errors import ExportError
from kd_pipeline.export.c_layers import (
    Activation,
    Addition,
    AveragePool,
    ChannelPadding,
    Convolution,
    Int8Array,
    IntegerNetwork,
    Layer,
    MaxPool,
    Unquantised,
    Window,
    fixed_points,
)
from kd_pipeline.export.c_onnx import (
    Constants,
    attributes,
    check,
    preprocessing_nodes,
    read_preprocessing,
    window_of,
)

Value = Activation | Unquantised

_MAX_SUM = 2**31
"""Sums are int32."""


def read_graph(model: Any) -> IntegerNetwork:
    """Read the layers of a quantised graph.

    Args:
        model: An `onnx.ModelProto`; uint8 pixels [batch, channels, height, width] to logits.

    Raises:
        ExportError: If an operator is unknown here, resizes, or is not quantised; it is named.
    """
    constants = Constants(model)
    preprocessing = preprocessing_nodes(model, constants)
    rest = [node for node in model.graph.node if node not in preprocessing]
    if unknown := sorted({node.op_type for node in rest} - _OPERATORS.keys()):
        raise ExportError(
            f"the network must have operators that the target `c` has, got {', '.join(unknown)}; "
            f"legal: {', '.join(sorted(_OPERATORS))}"
        )
    last = preprocessing[-1]
    reader = _Reader(constants, last.output[0], read_preprocessing(model, last, constants))
    for node in rest:
        if node.output[0] not in constants:
            reader.values[node.output[0]] = _OPERATORS[node.op_type](reader, node)
    return reader.network(model.graph.output[0].name)


class _Reader:
    """Values and layers of the nodes read so far."""

    def __init__(self, constants: Constants, name: str, first: Layer) -> None:
        self.constants = constants
        self.values: dict[str, Value] = {name: first.output}
        self.layers = [first]

    def network(self, name: str) -> IntegerNetwork:
        """The layers up to the output of this name."""
        if self.values[name] is not self.layers[-1].output:
            raise ExportError(f"the logits must be quantised by the last layer, got {name!r}")
        return IntegerNetwork(tuple(self.layers))

    def activation(self, node: Any, position: int = 0) -> Activation:
        """An input of a node that must be quantised."""
        value = self.values.get(node.input[position])
        if not isinstance(value, Activation):
            what = "a constant" if value is None else "a float tensor"
            raise ExportError(
                f"{node.op_type} {node.name!r} must have int8 inputs for the target `c`, "
                f"got {what}, {node.input[position]!r}"
            )
        return value

    def append(self, layer: Layer) -> Activation:
        """Add a layer, and return its output."""
        self.layers.append(layer)
        return layer.output


def _quantise(reader: _Reader, node: Any) -> Activation:
    value = reader.values[node.input[0]]
    scale, zero_point = reader.constants.quantisation(node)
    if isinstance(value, Activation):
        if (value.scale, value.zero_point) == (scale, zero_point):
            return value
        value = _average(value, Window())
    output = Activation(value.height, value.width, value.channels, scale, zero_point)
    bounds = np.rint(np.array([value.low, value.high]) / scale) + zero_point
    low, high = (int(bound) for bound in np.clip(bounds, -128, 127))
    return reader.append(value.make(output, low, high))


def _dequantise(reader: _Reader, node: Any) -> Activation:
    value, given = reader.activation(node), reader.constants.quantisation(node)
    check(node, given == (value.scale, value.zero_point), "have its QuantizeLinear's scale", given)
    return value


def _same(reader: _Reader, node: Any) -> Value:
    return reader.values[node.input[0]]


def _flatten(reader: _Reader, node: Any) -> Value:
    value = reader.values[node.input[0]]
    if node.op_type == "Flatten":
        axis = attributes(node).get("axis", 1)
        check(node, axis == 1, "keep the batch and flatten all else", axis)
        return value
    check(node, node.input[1] in reader.constants, "have a constant shape", node.input[1])
    shape, size = reader.constants.integers(node.input[1]), value.height * value.width
    is_flat = len(shape) == 2 and shape[1] in (-1, size * value.channels)
    check(node, is_flat, "keep the batch and flatten all else", shape)
    return value


def _clamp(reader: _Reader, node: Any) -> Unquantised:
    value = reader.values[node.input[0]]
    if isinstance(value, Activation):
        value = _average(value, Window())
    bounds = [0.0, np.inf]
    if node.op_type == "Clip":
        names = [*node.input[1:], "", ""][:2]
        plain = zip(names, (-np.inf, np.inf), strict=True)
        bounds = [reader.constants.real(name).item() if name else bound for name, bound in plain]
    low, high = (float(np.clip(bound, value.low, value.high)) for bound in bounds)
    return replace(value, low=low, high=high)


def _conv(reader: _Reader, node: Any) -> Unquantised:
    weights, scales = reader.constants.weights(node, axis=0)
    window, groups = window_of(node, weights.shape[2:]), attributes(node).get("group", 1)
    return _convolution(reader, node, weights.transpose(0, 2, 3, 1), scales, window, groups)


def _product(reader: _Reader, node: Any) -> Unquantised:
    given, source = attributes(node), reader.activation(node)
    plain = {"alpha": 1.0, "beta": 1.0, "transA": 0}
    others = {name: given.get(name, value) for name, value in plain.items()}
    check(node, others == plain, f"have {plain}", others)
    weights, scales = reader.constants.weights(node, axis=0 if given.get("transB") else 1)
    # Features are flattened channels first in the graph, channels last in C.
    filters = weights.reshape(-1, source.channels, source.height, source.width)
    window = Window(source.height, source.width)
    return _convolution(reader, node, filters.transpose(0, 2, 3, 1), scales, window, 1)


def _convolution(
    reader: _Reader,
    node: Any,
    weights: Int8Array,
    scales: NDArray[np.float64],
    window: Window,
    groups: int,
) -> Unquantised:
    """A convolution with weights [out_channels, height, width, in_channels / groups]."""
    source = reader.activation(node)
    units = source.scale * scales
    real_bias = np.zeros(len(weights))
    if len(node.input) > 2:
        check(node, node.input[2] in reader.constants, "have a constant bias", node.input[2])
        real_bias = reader.constants.real(node.input[2]).ravel()
    bias, largest = _sums(weights, real_bias / units, source.zero_point)
    if (largest >= _MAX_SUM).any():
        # Beside such a bias the channel's weights are next to nothing: in larger units both fit.
        factors = np.where(largest < _MAX_SUM, 1.0, np.ceil(largest / (_MAX_SUM / 2)))
        units = units * factors
        weights = np.rint(weights / factors[:, None, None, None]).astype(np.int8)
        bias, largest = _sums(weights, real_bias / units, source.zero_point)
    largest_sum = float(largest.max())
    check(node, largest_sum < _MAX_SUM, "have sums below 2 ** 31", largest_sum)

    def make(output: Activation, low: int, high: int) -> Layer:
        return Convolution(
            inputs=(source,),
            output=output,
            low=low,
            high=high,
            window=window,
            groups=groups,
            weights=weights,
            bias=bias.astype(np.int32),
            factors=fixed_points(list(units / output.scale)),
        )

    return Unquantised(*window.output_size(source.height, source.width), len(weights), make)


def _sums(
    weights: Int8Array, bias: NDArray[np.float64], zero_point: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Each channel's bias, in units of its sums, and the largest sum that may come of it."""
    # sum(w * (x - zero)) = sum(w * x) - zero * sum(w), so that sums run over what is stored.
    whole = np.rint(bias) - zero_point * weights.sum(axis=(1, 2, 3), dtype=np.int64)
    return whole, np.abs(whole) + 128 * np.abs(weights.astype(np.int64)).sum(axis=(1, 2, 3))


def _add(reader: _Reader, node: Any) -> Unquantised:
    left, right = reader.activation(node, 0), reader.activation(node, 1)
    shapes = left.shape, right.shape
    check(node, left.shape == right.shape, "add two tensors of one shape", shapes)

    def make(output: Activation, low: int, high: int) -> Layer:
        factors = fixed_points(
            [left.scale / output.scale, right.scale / output.scale], shared_shift=True
        )
        return Addition(
            inputs=(left, right),
            output=output,
            low=low,
            high=high,
            factors=(factors[0], factors[1]),
        )

    return Unquantised(*left.shape, make)


def _average(source: Activation, window: Window) -> Unquantised:
    """Means under each window; with a kernel of 1x1 the input with another scale."""

    def make(output: Activation, low: int, high: int) -> Layer:
        area = window.height * window.width
        (factor,) = fixed_points([source.scale / (area * output.scale)])
        return AveragePool(
            inputs=(source,), output=output, low=low, high=high, window=window, factor=factor
        )

    return Unquantised(*window.output_size(source.height, source.width), source.channels, make)


def _average_pool(reader: _Reader, node: Any) -> Unquantised:
    given, source = attributes(node), reader.activation(node)
    if node.op_type == "AveragePool":
        window = window_of(node, tuple(given["kernel_shape"]))
        counts_padding = given.get("count_include_pad", 0) or not any(given.get("pads", ()))
        check(node, bool(counts_padding), "count its padding", "count_include_pad=0")
        return _average(source, window)
    if node.op_type == "ReduceMean":
        names = node.input[1:]
        axes = reader.constants.integers(names[0]) if names else list(given.get("axes", ()))
        check(node, sorted(axis % 4 for axis in axes) == [2, 3], "average height and width", axes)
    return _average(source, Window(source.height, source.width))


def _max_pool(reader: _Reader, node: Any) -> Activation:
    window = window_of(node, tuple(attributes(node)["kernel_shape"]))
    return _pool(reader, reader.activation(node), window)


def _pool(reader: _Reader, source: Activation, window: Window) -> Activation:
    height, width = window.output_size(source.height, source.width)
    output = replace(source, height=height, width=width)
    return reader.append(MaxPool(inputs=(source,), output=output, window=window))


def _slice(reader: _Reader, node: Any) -> Activation:
    """Every n-th row or column, as maxima of one element."""
    source, sizes = reader.activation(node), {2: 0, 3: 1}
    parts = [reader.constants.integers(name) for name in node.input[1:]]
    parts += [[*range(len(parts[0]))], [1] * len(parts[0])][len(parts) - 2 :]
    strides = [1, 1]
    for start, end, axis, step in zip(*parts, strict=True):
        whole = axis in sizes and start == 0 and end >= source.shape[sizes[axis]] and step > 0
        check(node, whole, "keep every n-th row or column from the first", parts)
        strides[sizes[axis]] = step
    return _pool(reader, source, Window(1, 1, *strides))


def _pad(reader: _Reader, node: Any) -> Activation:
    source, pads = reader.activation(node), reader.constants.integers(node.input[1])
    extra = pads[5] if len(pads) == 8 else 0
    only_channels = pads == [0, 0, 0, 0, 0, extra, 0, 0] and extra >= 0
    check(node, only_channels, "pad channels after the last one", pads)
    filled = [reader.constants.real(name).item() for name in node.input[2:3] if name]
    mode = attributes(node).get("mode", b"constant")
    check(node, mode == b"constant" and not any(filled), "pad with 0", (mode, filled))
    output = replace(source, channels=source.channels + extra)
    return reader.append(ChannelPadding(inputs=(source,), output=output))


_OPERATORS: dict[str, Callable[[_Reader, Any], Value]] = {
    "Add": _add,
    "AveragePool": _average_pool,
    "Clip": _clamp,
    "Constant": _same,
    "Conv": _conv,
    "DequantizeLinear": _dequantise,
    "Flatten": _flatten,
    "Gemm": _product,
    "GlobalAveragePool": _average_pool,
    "Identity": _same,
    "MatMul": _product,
    "MaxPool": _max_pool,
    "Pad": _pad,
    "QuantizeLinear": _quantise,
    "ReduceMean": _average_pool,
    "Relu": _clamp,
    "Reshape": _flatten,
    "Slice": _slice,
}
