"""Constants, windows and preprocessing of a quantised ONNX graph, for the C target."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kd_pipeline.errors import ExportError
from kd_pipeline.export.c_layers import Activation, Int8Array, PixelTable, Window
from kd_pipeline.models.libraries import require

_FLATTENING = {"Flatten", "Reshape"}
_ELEMENTWISE = {
    "Cast",
    "Identity",
    "Mul",
    "Add",
    "Sub",
    "Div",
    "QuantizeLinear",
    "DequantizeLinear",
}


def check(node: Any, is_met: bool, rule: str, value: object) -> None:
    """Raise an `ExportError` that names a node and the rule that it breaks."""
    if not is_met:
        raise ExportError(
            f"{node.op_type} {node.name!r} must {rule} for the target `c`, got {value!r}"
        )


def attributes(node: Any) -> dict[str, Any]:
    """A node's attributes by name."""
    onnx = require("onnx", extra="onnx")
    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}


class Constants:
    """Tensors of a graph that do not depend on the pixels."""

    def __init__(self, model: Any) -> None:
        to_array = require("onnx.numpy_helper", extra="onnx").to_array
        self._arrays = {tensor.name: to_array(tensor) for tensor in model.graph.initializer}
        for node in model.graph.node:
            if node.op_type == "Constant":
                self._arrays[node.output[0]] = to_array(attributes(node)["value"])
        self._nodes = {
            node.output[0]: node
            for node in model.graph.node
            if node.op_type == "DequantizeLinear" and node.input[0] in self._arrays
        }

    def __contains__(self, name: str) -> bool:
        return name in self._arrays or name in self._nodes

    def real(self, name: str) -> NDArray[np.float64]:
        """Values in float64, dequantised where they are stored as integers."""
        if name not in self._nodes:
            return np.asarray(self._arrays[name], dtype=np.float64)
        node = self._nodes[name]
        stored, scale, *zero = (self._arrays[i].astype(np.float64) for i in node.input)
        if scale.ndim:
            shape = [1] * stored.ndim
            shape[attributes(node).get("axis", 1)] = -1
            scale, zero = scale.reshape(shape), [z.reshape(shape) for z in zero]
        return np.asarray((stored - (zero[0] if zero else 0)) * scale)

    def integers(self, name: str) -> list[int]:
        """A plain one-dimensional tensor of integers, such as a shape or axes."""
        return [int(value) for value in self._arrays[name].ravel()]

    def quantisation(self, node: Any) -> tuple[float, int]:
        """Scale and zero point of a QuantizeLinear or DequantizeLinear of activations."""
        arrays = [self._arrays.get(name) for name in node.input[1:]]
        sizes = [(a.dtype.name, a.size) for a in arrays if a is not None]
        rule = "have one scale and one int8 zero point"
        check(node, sizes == [("float32", 1), ("int8", 1)], rule, sizes)
        scale, zero_point = (a.item() for a in arrays if a is not None)
        return scale, zero_point

    def weights(self, node: Any, *, axis: int) -> tuple[Int8Array, NDArray[np.float64]]:
        """Weights of a convolution or product.

        Args:
            node: Its second input has the weights.
            axis: Of the weights' output channels.

        Returns:
            int8 weights, output channels first, and the scale of each, shape [out_channels].
        """
        name = node.input[1]
        check(node, name in self._nodes, "have int8 weights", name)
        stored, scale, *zero = (self._arrays[i] for i in self._nodes[name].input)
        check(node, stored.dtype == np.int8, "have int8 weights", stored.dtype.name)
        check(node, not any(map(np.any, zero)), "have symmetric weights", "a zero point")
        along = attributes(self._nodes[name]).get("axis", 1) % stored.ndim
        check(node, scale.size == 1 or along == axis, "have scales of output channels", along)
        scales = np.broadcast_to(scale.astype(np.float64).ravel(), (stored.shape[axis],))
        return np.moveaxis(stored, axis, 0), scales

    def is_per_channel(self, name: str) -> bool:
        """Whether a constant, broadcast to [batch, channels, height, width], is even in space."""
        return name in self and set(self.real(name).shape[-2:]) <= {1}


def window_of(node: Any, kernel: tuple[int, ...]) -> Window:
    """Kernel size, strides and padding of a convolution or pooling."""
    given = attributes(node)
    check(node, len(kernel) == 2, "have two spatial dimensions", len(kernel))
    for name, plain in (("auto_pad", b"NOTSET"), ("dilations", [1, 1]), ("ceil_mode", 0)):
        check(node, given.get(name, plain) == plain, f"have {name} {plain!r}", given.get(name))
    strides, pads = given.get("strides", [1, 1]), given.get("pads", [0, 0, 0, 0])
    return Window(*kernel, *strides, *pads)


def preprocessing_nodes(model: Any, constants: Constants) -> list[Any]:
    """The nodes from the pixels to the first activation that is read by a layer.

    All work on each element alone, or flatten; the last one is a QuantizeLinear.

    Raises:
        ExportError: If there is none, or the graph resizes the pixels.
    """
    if any(node.op_type == "Resize" for node in model.graph.node):
        rule = "leave Resize out for the target `c`: give it images of the network's size"
        raise ExportError(f"the preprocessing must {rule}, got Resize")
    name, path = model.graph.input[0].name, []
    while True:
        readers = [node for node in model.graph.node if name in node.input]
        if len(readers) != 1 or readers[0].op_type not in _ELEMENTWISE | _FLATTENING:
            break
        others = [other for other in readers[0].input if other != name]
        is_flattening = readers[0].op_type in _FLATTENING
        if not is_flattening and not all(map(constants.is_per_channel, others)):
            break
        path.append(readers[0])
        name = path[-1].output[0]
    while path and path[-1].op_type != "QuantizeLinear":
        path.pop()
    if not path:
        following = ", ".join(reader.op_type for reader in readers) or "nothing"
        raise ExportError(f"the normalisation must be followed by int8 layers, got {following}")
    return path


def read_preprocessing(model: Any, last: Any, constants: Constants) -> PixelTable:
    """Run the preprocessing for all 256 pixels of each channel.

    Args:
        model: The graph.
        last: The QuantizeLinear that ends the preprocessing.
        constants: Of the graph.
    """
    onnx, ort = (require(name, extra="onnx") for name in ("onnx", "onnxruntime"))
    dims = model.graph.input[0].type.tensor_type.shape.dim
    channels, height, width = (dim.dim_value for dim in dims[1:])
    part = onnx.ModelProto()
    part.CopyFrom(model)
    del part.graph.output[:]
    info = onnx.helper.make_tensor_value_info(last.output[0], onnx.TensorProto.INT8, None)
    part.graph.output.append(info)
    session = ort.InferenceSession(part.SerializeToString(), providers=["CPUExecutionProvider"])
    # As many images as hold 256 pixels a channel: any size is run, and none much too large.
    num_images = -(-256 // (height * width))
    levels = np.resize(np.arange(256, dtype=np.uint8), (num_images, 1, height, width))
    pixels = np.repeat(levels, channels, axis=1)
    (stored,) = session.run(None, {model.graph.input[0].name: pixels})
    check(last, len(stored) == num_images, "keep the batch", list(stored.shape))
    # The elements may have been flattened, and lie in the order of the pixels all the same.
    table = stored.reshape(num_images, channels, -1).swapaxes(0, 1).reshape(channels, -1)[:, :256]
    output = Activation(height, width, channels, *constants.quantisation(last))
    return PixelTable(inputs=(), output=output, table=table)
