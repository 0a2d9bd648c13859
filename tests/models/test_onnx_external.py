"""Files that an ONNX graph draws on: found wherever a tensor can be, and as onnx itself says."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from kd_pipeline.errors import CheckpointError
from kd_pipeline.models.onnx_external import external_files


def tensor(location: str) -> TensorProto:
    made = numpy_helper.from_array(np.zeros(3, dtype=np.float32), "weights")
    made.ClearField("raw_data")
    made.data_location = TensorProto.EXTERNAL
    made.external_data.add(key="offset", value="0")
    made.external_data.add(key="location", value=location)
    return made


def test_a_graph_without_external_data_draws_on_nothing() -> None:
    named = numpy_helper.from_array(np.zeros(3, dtype=np.float32), "location")
    graph = helper.make_graph([], "location", [], [], [named])
    assert external_files(helper.make_model(graph).SerializeToString()) == frozenset()


def test_tensors_are_found_in_subgraphs_attributes_functions_and_sparse_ones() -> None:
    branch = helper.make_graph([], "branch", [], [], [tensor("branch")])
    constant = helper.make_node("Constant", [], ["c"], value=tensor("attribute"))
    choice = helper.make_node("If", ["x"], ["y"], then_branch=branch)
    graph = helper.make_graph([constant, choice], "net", [], [], [tensor("initializer")])
    graph.sparse_initializer.add().values.CopyFrom(tensor("sparse"))
    inside = helper.make_node("Constant", [], ["c"], value=tensor("function"))
    opset = [helper.make_opsetid("", 17)]
    function = helper.make_function("own", "f", [], ["c"], [inside], opset)
    model = helper.make_model(graph, functions=[function], opset_imports=opset)
    found = external_files(model.SerializeToString())
    assert found == {"branch", "attribute", "initializer", "sparse", "function"}


def test_a_saved_file_draws_on_what_onnx_wrote(tmp_path: Path) -> None:
    weights = [
        numpy_helper.from_array(np.ones((n, 4), dtype=np.float32), f"weights_{n}") for n in (1, 300)
    ]
    model = helper.make_model(helper.make_graph([], "net", [], [], weights))
    onnx.save(
        model,
        tmp_path / "net.onnx",
        save_as_external_data=True,
        all_tensors_to_one_file=False,
        size_threshold=0,
    )
    written = {file.name for file in tmp_path.iterdir()} - {"net.onnx"}
    assert external_files((tmp_path / "net.onnx").read_bytes()) == written
    assert len(written) == 2


@pytest.mark.parametrize(
    "content",
    [
        bytes([7 << 3 | 2, 5, 0]),  # A part of 5 bytes of which 1 is there.
        bytes([7 << 3 | 3]),  # A group.
        bytes([7 << 3 | 2]) + b"\xff" * 11,  # A number without an end.
        bytes([7 << 3 | 0]),  # A number that is missing.
        bytes([0x80 | 7 << 3 | 2, 0x80, 0x80, 0x80, 0x10, 0]),  # A field of 2 ** 29 + 7.
    ],
)
def test_what_is_no_protobuf_is_refused(content: bytes) -> None:
    with pytest.raises(CheckpointError, match="no readable ONNX graph"):
        external_files(content)
