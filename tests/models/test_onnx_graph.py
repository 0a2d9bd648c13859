"""ONNX graphs: logits worked by hand, batches of any size, and what is refused."""

import builtins
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from kd_pipeline.errors import CheckpointError, ParameterError
from kd_pipeline.models import onnx_graph
from kd_pipeline.models.file_bytes import state_of
from kd_pipeline.models.onnx_graph import OnnxNetwork, read_onnx

WEIGHTS = np.random.default_rng(0).normal(size=(12, 4)).astype(np.float32)


def graph(
    batch: int | str = "batch", *, dtype: int = TensorProto.FLOAT, size: int | str = 2
) -> onnx.ModelProto:
    """Flatten and multiply: [batch, 3, 2, 2] to [batch, 4]."""
    cast = helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT)
    flat = helper.make_node("Flatten", ["floats"], ["flat"])
    product = helper.make_node("MatMul", ["flat", "weights"], ["logits"])
    return helper.make_model(
        helper.make_graph(
            [cast, flat, product],
            "net",
            [helper.make_tensor_value_info("images", dtype, [batch, 3, size, size])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, 4])],
            [numpy_helper.from_array(WEIGHTS, "weights")],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )


def images(num_images: int) -> torch.Tensor:
    return torch.rand(num_images, 3, 2, 2, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("num_images", [1, 2, 5])
@pytest.mark.parametrize("batch", ["batch", 1, 3])
def test_logits_are_the_graphs_in_batches_of_any_size(num_images: int, batch: int | str) -> None:
    network = OnnxNetwork(state_of(graph(batch).SerializeToString()))
    assert network.input_shape == (batch if isinstance(batch, int) else None, 3, 2, 2)
    assert network.num_outputs == 4
    expected = images(num_images).flatten(1).numpy() @ WEIGHTS
    np.testing.assert_allclose(network(images(num_images)).numpy(), expected, rtol=1e-5)


def as_seen(pixels: torch.Tensor) -> torch.Tensor:
    """As a classifier hands bytes on: times 1 / 255, which is not quite divided by 255."""
    return pixels.float() * torch.tensor(1 / 255)


def test_a_graph_of_raw_pixels_gets_the_bytes_back() -> None:
    network = OnnxNetwork(state_of(graph(dtype=TensorProto.UINT8).SerializeToString()))
    assert network.takes_raw_pixels
    pixels = torch.arange(16, 256, 5, dtype=torch.uint8).reshape(4, 3, 2, 2)
    expected = pixels.flatten(1).numpy().astype(np.float32) @ WEIGHTS
    np.testing.assert_allclose(network(as_seen(pixels)).numpy(), expected, rtol=1e-5)
    # Of a view between two levels, the nearer one.
    between = as_seen(pixels) - torch.tensor(0.3 / 255)
    np.testing.assert_allclose(network(between).numpy(), expected, rtol=1e-5)


def test_open_sizes_are_told_as_open() -> None:
    network = OnnxNetwork(state_of(graph(size="side").SerializeToString()))
    assert network.input_shape == (None, 3, None, None)


def test_weights_beside_the_file_are_drawn_into_it(tmp_path: Path) -> None:
    file = tmp_path / "net.onnx"
    onnx.save(graph(), file, save_as_external_data=True, location="net.data", size_threshold=0)
    content = read_onnx(file)
    (tmp_path / "net.data").unlink()
    logits = OnnxNetwork(content)(images(2)).numpy()
    np.testing.assert_allclose(logits, images(2).flatten(1).numpy() @ WEIGHTS, rtol=1e-5)
    with pytest.raises(CheckpointError, match=r"must lie beside it, got no file net\.data"):
        read_onnx(file)


def test_files_whose_names_only_occur_in_the_graph_stay_out(tmp_path: Path) -> None:
    """A file named `images`, as the graph's input is, or `logits`, is not part of the model."""
    (tmp_path / "images").write_bytes(b"private")
    (tmp_path / "logits").write_bytes(b"private")
    file = tmp_path / "net.onnx"
    onnx.save(graph(), file, save_as_external_data=True, location="net.data", size_threshold=0)
    assert set(read_onnx(file)) == {*state_of(b""), "beside/net.data"}


def reaching_for(location: str) -> bytes:
    model = graph()
    weights = model.graph.initializer[0]
    weights.ClearField("raw_data")
    weights.data_location = TensorProto.EXTERNAL
    weights.external_data.add(key="location", value=location)
    return model.SerializeToString()


def test_weights_are_never_looked_for_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "net.data").write_bytes(WEIGHTS.tobytes())
    monkeypatch.chdir(tmp_path)
    content = state_of(reaching_for("net.data"))
    with pytest.raises(CheckpointError, match=r"must come with it, got no \['net\.data'\]"):
        OnnxNetwork(content)
    # Nor where a graph names them in a way that is not understood.
    monkeypatch.setattr(onnx_graph, "external_files", lambda _: frozenset())
    with pytest.raises(CheckpointError, match="onnxruntime cannot read the ONNX graph"):
        OnnxNetwork(content)


@pytest.mark.parametrize(
    "location", ["../net.data", "/etc/hostname", "sub/net.data", "..", "*/_ORT_MEM_ADDR_/*", ""]
)
def test_weights_that_would_lie_elsewhere_are_refused(tmp_path: Path, location: str) -> None:
    (tmp_path / "net.onnx").write_bytes(reaching_for(location))
    with pytest.raises(CheckpointError, match="named without folders, got"):
        read_onnx(tmp_path / "net.onnx")
    with pytest.raises(CheckpointError, match="named without folders, got"):
        OnnxNetwork(state_of(reaching_for(location)))


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(graph().SerializeToString()[:100])
    with pytest.raises(CheckpointError, match="no readable ONNX graph"):
        read_onnx(tmp_path / "net.onnx")
    (tmp_path / "net.onnx").write_bytes(b"")
    with pytest.raises(CheckpointError, match="onnxruntime cannot read the ONNX graph"):
        read_onnx(tmp_path / "net.onnx")


def test_graphs_of_another_kind_are_refused() -> None:
    two = graph()
    two.graph.input.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, [1]))
    with pytest.raises(CheckpointError, match=r"one input \[batch, channels, height, width\]"):
        OnnxNetwork(state_of(two.SerializeToString()))
    flat = graph()
    flat.graph.output.append(helper.make_tensor_value_info("flat", TensorProto.FLOAT, ["b", 12]))
    with pytest.raises(CheckpointError, match=r"one output \[batch, num_classes\], got logits"):
        OnnxNetwork(state_of(flat.SerializeToString()))


def test_without_onnxruntime_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def absent(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "onnxruntime":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(ParameterError, match=r"pip install 'kd_pipeline\[onnx\]'"):
        OnnxNetwork(state_of(graph().SerializeToString()))
