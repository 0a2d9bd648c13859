"""ONNX files for onnxruntime: float32, and int8 by static quantisation."""

import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kd_pipeline.errors import ExportError
from kd_pipeline.export.target import ExportedFile, ExportJob, Precision, Runner, Target
from kd_pipeline.models.libraries import quiet_export, require

INPUT, OUTPUT = "pixels", "logits"
_OPSET = 20  # The first with GELU, and with antialiasing when resizing.
_CALIBRATION_BATCH = 64

# Of these all inputs and outputs become int8; any other operator stays in float32.
_QUANTISED_OPERATORS = (
    "Add", "AveragePool", "Clip", "Concat", "Conv", "Flatten", "Gemm", "GlobalAveragePool",
    "MatMul", "MaxPool", "Mul", "Pad", "ReduceMean", "Relu", "Reshape", "Slice",
)  # fmt: skip


def float_graph(job: ExportJob) -> Any:
    """The classifier with its preprocessing as an ONNX graph.

    Returns:
        An `onnx.ModelProto` that maps uint8 `pixels` [batch, *input_shape], for any batch, to
        float32 `logits` [batch, num_classes]; batch norm is folded into convolutions.

    Raises:
        ExportError: Naming what ONNX cannot hold.
    """
    require("onnxscript", extra="onnx")
    classifier = job.build()
    # Two images at least: torch.export takes a batch of one for a constant.
    example = torch.zeros((2, *job.input_shape), dtype=torch.uint8)
    with quiet_export():
        try:
            program = torch.onnx.export(
                classifier,
                (example,),
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                input_names=[INPUT],
                output_names=[OUTPUT],
                opset_version=_OPSET,
                dynamo=True,
                verbose=False,
            )
        except Exception as error:  # Of many kinds, from anywhere inside torch or the network.
            reason = next(iter(str(error.__cause__ or error).splitlines()), "")
            raise ExportError(
                f"{job.checkpoint.architecture} cannot be exported to ONNX: {reason}"
            ) from error
    if program is None:  # torch's hints say it might be.
        raise ExportError(f"{job.checkpoint.architecture} cannot be exported to ONNX")
    return _bare(program.model_proto)


def int8_graph(job: ExportJob) -> Any:
    """The int8 graph that lies in the job's folder, or else a new one, which is the same."""
    file = job.folder / TARGET.files["int8"]
    if file.is_file():
        return require("onnx", extra="onnx").load(file)
    return quantise(float_graph(job), job.calibration)


def quantise(graph: Any, calibration: Tensor) -> Any:
    """A float graph with 8-bit weights, one scale per output channel, and 8-bit activations.

    Quantised statically (QDQ): ranges of activations are their least and greatest value over the
    uint8 images `calibration` [num_rows, *input_shape]. Pixels are normalised in float32.

    Returns:
        An `onnx.ModelProto`.
    """
    quantisation = require("onnxruntime.quantization", extra="onnx")
    copy = type(graph)()
    copy.CopyFrom(graph)  # It would be changed.
    with tempfile.TemporaryDirectory() as folder, quiet_export():
        file = Path(folder, "model.onnx")
        parts = torch.split(calibration, _CALIBRATION_BATCH)
        batches = ({INPUT: part.numpy()} for part in parts)
        quantisation.quantize_static(
            copy,
            file,
            SimpleNamespace(get_next=lambda: next(batches, None)),
            quant_format=quantisation.QuantFormat.QDQ,
            op_types_to_quantize=list(_QUANTISED_OPERATORS),
            per_channel=True,
            activation_type=quantisation.QuantType.QInt8,
            weight_type=quantisation.QuantType.QInt8,
            nodes_to_exclude=_preprocessing_nodes(graph),
        )
        return _bare(require("onnx", extra="onnx").load(file))


def _preprocessing_nodes(graph: Any) -> list[str]:
    """Names of the nodes between the pixels and the first layer.

    They resize and normalise: in 8 bits that would round the pixels once more.
    """
    names, reached = [], {INPUT}
    for node in graph.graph.node:
        if node.op_type in ("Conv", "Gemm", "MatMul"):
            break
        if node.op_type in ("Cast", "Resize", "Mul", "Add") and reached & set(node.input):
            names.append(node.name)
            reached |= set(node.output)
    return names


def _bare(graph: Any) -> Any:
    """Without what exporters note for their own use: stack traces with paths, and shapes."""
    for node in graph.graph.node:
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    for value in (*graph.graph.input, *graph.graph.output, *graph.graph.initializer):
        value.ClearField("metadata_props")
    for field in ("value_info", "metadata_props"):
        graph.graph.ClearField(field)
    graph.ClearField("metadata_props")
    return graph


def _with_numbered_tensors(graph: Any) -> Any:
    """Numbers for the names of tensors between input and output, which were 6 % of ResNet-8."""
    numbers = {value.name: value.name for value in (*graph.graph.input, *graph.graph.output)}
    numbers[""] = ""  # An input that is left out.
    for node in graph.graph.node:
        for names in (node.input, node.output):
            names[:] = [numbers.setdefault(name, str(len(numbers))) for name in names]
    for tensor in graph.graph.initializer:
        tensor.name = numbers[tensor.name]
    return graph


def _export(job: ExportJob) -> list[ExportedFile]:
    graph = float_graph(job)
    files = [_write(graph, job, "float32")]
    quantised = _with_numbered_tensors(quantise(graph, job.calibration))
    return [*files, _write(quantised, job, "int8")]


def _write(graph: Any, job: ExportJob, precision: Precision) -> ExportedFile:
    onnx = require("onnx", extra="onnx")
    onnx.helper.set_model_props(graph, dict(job.metadata))
    path = job.folder / TARGET.files[precision]
    path.write_bytes(graph.SerializeToString(deterministic=True))
    return ExportedFile("onnx", precision, path, {"size_bytes": path.stat().st_size})


def _open(path: Path, num_threads: int) -> Runner:
    ort = require("onnxruntime", extra="onnx")
    options = ort.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.log_severity_level = 4  # Failures are raised.
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        logits: NDArray[np.float32] = session.run([OUTPUT], {INPUT: pixels})[0]
        return logits

    return run


TARGET = Target(
    files={"float32": "model.onnx", "int8": "model.int8.onnx"},
    export=_export,
    open=_open,
    packages=("onnx", "onnxruntime", "onnxscript"),
    extra="onnx",
)
"""Runs wherever onnxruntime does: phones, desktops, browsers, servers."""
