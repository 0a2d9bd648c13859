"""ONNX graphs: logits worked by hand, batches of any size, and what is refused."""

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from kd_pipeline.errors import CheckpointError, ParameterError
from kd_pipeline.models.onnx_graph import OnnxNetwork, external_files, read_onnx

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


def files_of(content: bytes) -> dict[str, torch.Tensor]:
    return {"content": torch.from_numpy(np.frombuffer(bytearray(content), dtype=np.uint8))}


def images(num_images: int) -> torch.Tensor:
    return torch.rand(num_images, 3, 2, 2, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("num_images", [1, 2, 5])
@pytest.mark.parametrize("batch", ["batch", 1, 3])
def test_logits_are_the_graphs_in_batches_of_any_size(num_images: int, batch: int | str) -> None:
    network = OnnxNetwork(files_of(graph(batch).SerializeToString()))
    assert network.input_shape == (batch if isinstance(batch, int) else None, 3, 2, 2)
    expected = images(num_images).flatten(1).numpy() @ WEIGHTS
    np.testing.assert_allclose(network(images(num_images)).numpy(), expected, rtol=1e-5)


def as_seen(pixels: torch.Tensor) -> torch.Tensor:
    """As a classifier hands bytes on: times 1 / 255, which is not quite divided by 255."""
    return pixels.float() * torch.tensor(1 / 255)


def test_a_graph_of_raw_pixels_gets_the_bytes_back() -> None:
    network = OnnxNetwork(files_of(graph(dtype=TensorProto.UINT8).SerializeToString()))
    assert network.takes_raw_pixels
    pixels = torch.arange(16, 256, 5, dtype=torch.uint8).reshape(4, 3, 2, 2)
    expected = pixels.flatten(1).numpy().astype(np.float32) @ WEIGHTS
    np.testing.assert_allclose(network(as_seen(pixels)).numpy(), expected, rtol=1e-5)
    # Of a view between two levels, the nearer one.
    between = as_seen(pixels) - torch.tensor(0.3 / 255)
    np.testing.assert_allclose(network(between).numpy(), expected, rtol=1e-5)


def test_open_sizes_are_told_as_open() -> None:
    network = OnnxNetwork(files_of(graph(size="side").SerializeToString()))
    assert network.input_shape == (None, 3, None, None)


def test_weights_beside_the_file_are_drawn_into_it(tmp_path: Path) -> None:
    file = tmp_path / "net.onnx"
    onnx.save(graph(), file, save_as_external_data=True, location="net.data", size_threshold=0)
    files = read_onnx(file).files
    (tmp_path / "net.data").unlink()
    logits = OnnxNetwork(files)(images(2)).numpy()
    np.testing.assert_allclose(logits, images(2).flatten(1).numpy() @ WEIGHTS, rtol=1e-5)
    with pytest.raises(CheckpointError, match=r"must lie beside it, got no file net\.data"):
        read_onnx(file)


def test_files_whose_names_only_occur_in_the_graph_stay_out(tmp_path: Path) -> None:
    """A file named `images`, as the graph's input is, or `logits`, is not part of the model."""
    (tmp_path / "images").write_bytes(b"private")
    (tmp_path / "logits").write_bytes(b"private")
    file = tmp_path / "net.onnx"
    onnx.save(graph(), file, save_as_external_data=True, location="net.data", size_threshold=0)
    assert set(read_onnx(file).files) == {"content", "beside/net.data"}


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
    content = files_of(reaching_for("net.data"))
    with pytest.raises(CheckpointError, match=r"must come with it, got no \['net\.data'\]"):
        OnnxNetwork(content)


@pytest.mark.parametrize(
    "location", ["../net.data", "/etc/hostname", "sub/net.data", "..", "*/_ORT_MEM_ADDR_/*", ""]
)
def test_weights_that_would_lie_elsewhere_are_refused(tmp_path: Path, location: str) -> None:
    (tmp_path / "net.onnx").write_bytes(reaching_for(location))
    with pytest.raises(CheckpointError, match="named without folders, got"):
        read_onnx(tmp_path / "net.onnx")
    with pytest.raises(CheckpointError, match="named without folders, got"):
        OnnxNetwork(files_of(reaching_for(location)))


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(graph().SerializeToString()[:100])
    with pytest.raises(CheckpointError, match=r"net\.onnx: no readable ONNX graph"):
        read_onnx(tmp_path / "net.onnx")
    no_utf_8 = graph(batch="batch").SerializeToString().replace(b"batch", b"b\xe1tch")
    (tmp_path / "net.onnx").write_bytes(no_utf_8)
    with pytest.raises(CheckpointError, match=r"net\.onnx: 'utf-8' codec can't decode"):
        read_onnx(tmp_path / "net.onnx")
    (tmp_path / "net.onnx").write_bytes(b"")
    with pytest.raises(CheckpointError, match="onnxruntime cannot read the ONNX graph"):
        read_onnx(tmp_path / "net.onnx")


def test_graphs_of_another_kind_are_refused() -> None:
    two = graph()
    two.graph.input.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, [1]))
    with pytest.raises(CheckpointError, match=r"one input \[batch, channels, height, width\]"):
        OnnxNetwork(files_of(two.SerializeToString()))
    flat = graph()
    flat.graph.output.append(helper.make_tensor_value_info("flat", TensorProto.FLOAT, ["b", 12]))
    with pytest.raises(CheckpointError, match=r"one output \[batch, num_classes\], got logits"):
        OnnxNetwork(files_of(flat.SerializeToString()))


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_without_its_packages_the_extra_is_named(
    package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    message = rf"have {package} installed: pip install 'kd_pipeline\[onnx\]'"
    with pytest.raises(ParameterError, match=message):
        OnnxNetwork(files_of(graph().SerializeToString()))


def tensor(location: str) -> TensorProto:
    made = numpy_helper.from_array(np.zeros(3, dtype=np.float32), "weights")
    made.ClearField("raw_data")
    made.data_location = TensorProto.EXTERNAL
    made.external_data.add(key="offset", value="0")
    made.external_data.add(key="location", value=location)
    return made


def test_a_graph_without_external_data_draws_on_nothing() -> None:
    named = numpy_helper.from_array(np.zeros(3, dtype=np.float32), "location")
    inside = helper.make_graph([], "location", [], [], [named])
    assert external_files(helper.make_model(inside).SerializeToString()) == []


def test_tensors_are_found_in_subgraphs_attributes_functions_and_sparse_ones() -> None:
    branch = helper.make_graph([], "branch", [], [], [tensor("branch")])
    constant = helper.make_node("Constant", [], ["c"], value=tensor("attribute"))
    choice = helper.make_node("If", ["x"], ["y"], then_branch=branch)
    net = helper.make_graph([constant, choice], "net", [], [], [tensor("initializer")])
    net.sparse_initializer.add().values.CopyFrom(tensor("sparse"))
    inside = helper.make_node("Constant", [], ["c"], value=tensor("function"))
    opset = [helper.make_opsetid("", 17)]
    function = helper.make_function("own", "f", [], ["c"], [inside], opset)
    model = helper.make_model(net, functions=[function], opset_imports=opset)
    model.training_info.add().algorithm.CopyFrom(
        helper.make_graph([], "step", [], [], [tensor("training")])
    )
    assert external_files(model.SerializeToString()) == sorted(
        ["branch", "attribute", "initializer", "sparse", "function", "training"]
    )


def test_every_location_of_a_tensor_counts() -> None:
    """Whichever of several onnxruntime would take."""
    twice = tensor("net.data")
    twice.external_data.add(key="location", value="/etc/hostname")
    model = helper.make_model(helper.make_graph([], "net", [], [], [twice]))
    with pytest.raises(CheckpointError, match="named without folders, got '/etc/hostname'"):
        external_files(model.SerializeToString())


def test_a_location_that_is_no_text_is_refused() -> None:
    model = helper.make_model(helper.make_graph([], "net", [], [], [tensor("../net")]))
    content = model.SerializeToString().replace(b"../net", b"../n\xff\xfe")
    with pytest.raises(CheckpointError, match="named without folders, got b'"):
        external_files(content)


@pytest.mark.parametrize(
    "content",
    [
        bytes([7 << 3 | 2, 5, 0]),  # A part of 5 bytes of which 1 is there.
        bytes([7 << 3 | 2]) + b"\xff" * 11,  # A number without an end.
        bytes([7 << 3 | 0]),  # A number that is missing.
    ],
)
def test_what_is_no_protobuf_is_refused(content: bytes) -> None:
    with pytest.raises(CheckpointError, match="no readable ONNX graph"):
        external_files(content)
