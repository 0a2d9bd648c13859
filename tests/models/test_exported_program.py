"""Exported programs: the same logits in batches of any size, and no code from the file."""

import contextlib
import io
import json
import os
import pickle
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from kd_pipeline.errors import CheckpointError
from kd_pipeline.models.exported_program import ExportedNetwork
from kd_pipeline.models.file_bytes import state_of


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(48, 4)
        self.register_buffer("offset", torch.arange(4.0))

    def forward(self, images: Tensor) -> Tensor:
        return self.layer(images.float().flatten(1)) + self.offset


def export(network: nn.Module, example: Tensor, *, fixed: bool = False) -> bytes:
    shapes = None if fixed else ({0: torch.export.Dim.AUTO},)
    written = io.BytesIO()
    with torch.random.fork_rng():
        torch.export.save(
            torch.export.export(network.eval(), (example,), dynamic_shapes=shapes), written
        )
    return written.getvalue()


@pytest.fixture(scope="module")
def network() -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Net().eval()


@pytest.fixture(scope="module")
def archive(network: Net) -> bytes:
    return export(network, torch.zeros(2, 3, 4, 4))


@pytest.mark.parametrize("num_images", [1, 2, 5])
@pytest.mark.parametrize("fixed", [False, True])
def test_logits_are_the_networks_in_batches_of_any_size(
    network: Net, archive: bytes, num_images: int, fixed: bool
) -> None:
    content = export(network, torch.zeros(3, 3, 4, 4), fixed=True) if fixed else archive
    exported = ExportedNetwork(state_of(content))
    assert exported.input_shape == (3 if fixed else None, 3, 4, 4)
    assert exported.num_outputs == 4
    images = torch.rand(num_images, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        torch.testing.assert_close(exported.eval()(images), network(images))


def as_seen(pixels: torch.Tensor) -> torch.Tensor:
    """As a classifier hands bytes on: times 1 / 255, which is not quite divided by 255."""
    return pixels.float() * torch.tensor(1 / 255)


def test_a_graph_of_raw_pixels_gets_the_bytes_back(network: Net) -> None:
    exported = ExportedNetwork(
        state_of(export(network, torch.zeros(2, 3, 4, 4, dtype=torch.uint8)))
    )
    assert exported.takes_raw_pixels
    pixels = torch.arange(16, 256).to(torch.uint8).reshape(5, 3, 4, 4)
    with torch.inference_mode():
        assert torch.equal(exported(as_seen(pixels)), network(pixels))
        # Of a view between two levels, the nearer one.
        between = as_seen(pixels) - torch.tensor(0.3 / 255)
        assert torch.equal(exported(between), network(pixels))


def edited(archive: bytes, part: str, edit: Callable[[bytes], bytes]) -> bytes:
    written = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as old, zipfile.ZipFile(written, "w") as new:
        for name in old.namelist():
            new.writestr(name, edit(old.read(name)) if name.endswith(part) else old.read(name))
    return written.getvalue()


def in_graph(edit: Callable[[dict[str, Any]], None]) -> Callable[[bytes], bytes]:
    def change(content: bytes) -> bytes:
        program = json.loads(content)
        edit(program)
        return json.dumps(program).encode()

    return change


class RunsCode:
    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.witness}",)


def test_pickled_examples_are_never_unpickled(archive: bytes, tmp_path: Path) -> None:
    bait = pickle.dumps(RunsCode(tmp_path / "ran"))
    ExportedNetwork(state_of(edited(archive, "sample_inputs/model.pt", lambda _: bait)))
    assert not (tmp_path / "ran").exists()


def test_pickled_weights_are_refused(archive: bytes, tmp_path: Path) -> None:
    def pickled(content: bytes) -> bytes:
        config = json.loads(content)
        next(iter(config["config"].values()))["use_pickle"] = True
        return json.dumps(config).encode()

    with pytest.raises(CheckpointError, match="would be unpickled and can run code"):
        ExportedNetwork(state_of(edited(archive, "weights_config.json", pickled)))


def changed(archive: bytes, edit: Callable[[dict[str, Any]], None]) -> ExportedNetwork:
    return ExportedNetwork(state_of(edited(archive, "models/model.json", in_graph(edit))))


def first_node(program: dict[str, Any]) -> dict[str, Any]:
    node: dict[str, Any] = program["graph_module"]["graph"]["nodes"][0]
    return node


def inserted(node: dict[str, Any]) -> Callable[[dict[str, Any]], None]:
    rest: dict[str, Any] = {"metadata": {}, "is_hop_single_tensor_return": None, "name": None}

    def insert(program: dict[str, Any]) -> None:
        program["graph_module"]["graph"]["nodes"].insert(0, node | rest)

    return insert


@pytest.mark.parametrize(
    "target",
    [
        *("torch.os.system", "torch.ops.aten.__class__", "_operator.methodcaller", "#x:y"),
        *("torch.ops.aten.from_file.default", "torch.ops.aten.save.default"),
        *("torch.ops.aten.add.out", "torch.ops.aten.as_strided.default"),
        *("torch.ops.higher_order.cond", "torch.ops.higher_order.wrap_with_set_grad_enabled"),
    ],
)
def test_operators_that_no_classifier_needs_are_refused(archive: bytes, target: str) -> None:
    with pytest.raises(CheckpointError, match=f"classifiers need, got target '{target}'; give"):
        changed(archive, lambda program: first_node(program).update(target=target))


@pytest.mark.parametrize("target", ["torch.ops.aten.to", "torch.ops.aten.to.__class__"])
def test_operators_of_another_torch_are_refused(archive: bytes, target: str) -> None:
    with pytest.raises(CheckpointError, match=f"has no operator '{target}'"):
        changed(archive, lambda program: first_node(program).update(target=target))


def run_or_refuse(build: Callable[[], ExportedNetwork]) -> None:
    # Code from the file may have run before whatever fails: what it left behind is looked at.
    with contextlib.suppress(Exception):
        build()(torch.zeros(2, 3, 4, 4))


def test_a_keyword_that_is_python_is_not_run(archive: bytes, tmp_path: Path) -> None:
    """torch.export.load prints it into the source of the graph."""
    python = f"a = __import__('os').system('touch {tmp_path}/ran'), b"
    call = {
        "target": "math.floor",
        "inputs": [{"name": python, "arg": {"as_int": 1}, "kind": 2}],
        "outputs": [{"as_sym_int": {"as_name": "unused"}}],
    }

    def call_it(program: dict[str, Any]) -> None:
        program["graph_module"]["graph"]["sym_int_values"]["unused"] = {"as_int": 1}
        inserted(call)(program)

    run_or_refuse(lambda: changed(archive, call_it))
    assert not (tmp_path / "ran").exists()
    with pytest.raises(CheckpointError, match=r"math\.floor must be given no keywords"):
        changed(archive, inserted(call))
    call["target"] = "torch.ops.aten.scalar_tensor.default"
    with pytest.raises(CheckpointError, match=r"must be given its own arguments, got .a = "):
        changed(archive, inserted(call))


def test_names_that_are_python_are_only_names(network: Net, archive: bytes, tmp_path: Path) -> None:
    python = json.dumps(f"x=__import__('os').system('touch {tmp_path}/ran')").encode()
    renamed = edited(archive, "models/model.json", lambda c: c.replace(b'"images"', python))
    run_or_refuse(lambda: ExportedNetwork(state_of(renamed)))
    assert not (tmp_path / "ran").exists()
    images = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        logits = ExportedNetwork(state_of(renamed))(images)
        torch.testing.assert_close(logits, network(images))


@pytest.mark.parametrize(
    "argument",
    [
        {"as_operator": "torch.os.system"},
        {"as_graph": {"name": "g", "graph": {}}},
        {"as_custom_obj": {"name": "c", "class_fqn": "os.system"}},
        {"as_complex": {"real": 0.0, "imag": 1.0}},
    ],
)
def test_arguments_that_are_more_than_numbers_are_refused(
    archive: bytes, argument: dict[str, Any]
) -> None:
    (kind,) = argument
    call = {
        "target": "torch.ops.aten.abs.default",
        "inputs": [{"name": "self", "arg": argument, "kind": 1}],
        "outputs": [{"as_tensor": {"name": "unused"}}],
    }
    with pytest.raises(CheckpointError, match=f"tensors, numbers and dtypes, got {kind}"):
        changed(archive, inserted(call))


def test_trees_of_arguments_import_nothing(
    archive: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pytree imports the module that a default dictionary names."""
    (tmp_path / "kd_bait.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    monkeypatch.syspath_prepend(tmp_path)
    names = {"default_factory_module": "kd_bait", "default_factory_name": "x", "dict_context": []}
    tree = {
        "type": "collections.defaultdict",
        "context": names,
        "children_spec": [],
    }

    def grow(program: dict[str, Any]) -> None:
        signature = program["graph_module"]["module_call_graph"][0]["signature"]
        signature["in_spec"] = signature["out_spec"] = json.dumps([1, tree])

    run_or_refuse(lambda: changed(archive, grow))
    assert not (tmp_path / "ran").exists()
    assert "kd_bait" not in sys.modules


def test_files_are_neither_read_nor_written(archive: bytes, tmp_path: Path) -> None:
    call = {
        "target": "torch.ops.aten.from_file.default",
        "inputs": [
            {"name": "filename", "arg": {"as_string": str(tmp_path / "ran")}, "kind": 1},
            {"name": "shared", "arg": {"as_bool": True}, "kind": 1},
            {"name": "size", "arg": {"as_int": 8}, "kind": 1},
        ],
        "outputs": [{"as_tensor": {"name": "unused"}}],
    }

    def call_it(program: dict[str, Any]) -> None:
        known = program["graph_module"]["graph"]["tensor_values"]
        known["unused"] = known["b_offset"]
        inserted(call)(program)

    run_or_refuse(lambda: changed(archive, call_it))
    assert not (tmp_path / "ran").exists()


def test_expressions_are_never_evaluated(archive: bytes, tmp_path: Path) -> None:
    """sympy would evaluate them as Python."""
    python = f"__import__('os').system('touch {tmp_path}/ran')"

    def evaluate(program: dict[str, Any]) -> None:
        for meta in program["graph_module"]["graph"]["tensor_values"].values():
            for size in meta["sizes"]:
                if "as_expr" in size:
                    size["as_expr"]["expr_str"] = python
        program["guards_code"] = [python]

    assert changed(archive, evaluate).input_shape == (None, 3, 4, 4)
    assert not (tmp_path / "ran").exists()


def test_results_that_are_not_there_are_refused(archive: bytes) -> None:
    call = {
        "target": "torch.ops.aten.abs.default",
        "inputs": [{"name": "self", "arg": {"as_tensor": {"name": "nobody"}}, "kind": 1}],
        "outputs": [{"as_tensor": {"name": "unused"}}],
    }
    with pytest.raises(CheckpointError, match=r"uses \['nobody'\] before it is there"):
        changed(archive, inserted(call))


def test_steps_that_give_nothing_are_refused(archive: bytes) -> None:
    call: dict[str, Any] = {"target": "torch.ops.aten.eye.default", "inputs": [], "outputs": []}
    with pytest.raises(CheckpointError, match="must name its results, got none"):
        changed(archive, inserted(call))


def test_weights_outside_of_their_record_are_refused(archive: bytes) -> None:
    def beyond(content: bytes) -> bytes:
        config = json.loads(content)
        config["config"]["layer.weight"]["tensor_meta"]["storage_offset"]["as_int"] = 1000
        return json.dumps(config).encode()

    with pytest.raises(CheckpointError, match="out of bounds for storage"):
        ExportedNetwork(state_of(edited(archive, "weights_config.json", beyond)))


class MakesTensors(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        ramp = torch.arange(4, device=images.device)
        mask = torch.ones(len(images), 4, device=images.device) * torch.tensor([0.0, 1.0, 2.0, 3.0])
        return images.mean(dim=(1, 2, 3))[:, None] * mask + ramp


def test_a_graph_follows_the_images_device() -> None:
    content = export(MakesTensors(), torch.zeros(2, 3, 4, 4))
    exported = ExportedNetwork(state_of(content))
    logits = exported(torch.zeros(5, 3, 4, 4, device="meta"))
    assert (logits.shape, logits.device.type) == ((5, 4), "meta")
    expected = torch.arange(4.0) * 2  # The mean is 1: mask plus ramp.
    assert torch.equal(exported(torch.ones(1, 3, 4, 4)), expected[None])


class Resized(nn.Module):
    """What a classifier of this project does before its network, on grey pixels."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor) -> Tensor:
        scaled = pixels.float().expand(-1, 3, -1, -1) / 255
        return self.network(
            nn.functional.interpolate(scaled, size=(32, 32), mode="bilinear", antialias=True)
        )


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "vision_transformer"])
def test_libraries_networks_answer_as_before_their_export(name: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = (
            torchvision.models.VisionTransformer(32, 8, 2, 4, 64, 128, num_classes=10)
            if name == "vision_transformer"
            else torchvision.models.get_model(name, num_classes=10)
        )
    network = Resized(made).eval()
    exported = ExportedNetwork(
        state_of(export(network, torch.zeros(2, 1, 20, 20, dtype=torch.uint8)))
    )
    pixels = torch.arange(0, 1200).remainder(256).to(torch.uint8).reshape(3, 1, 20, 20)
    with torch.inference_mode():
        torch.testing.assert_close(exported.eval()(as_seen(pixels)), network(pixels))


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 cut off"])
def test_damaged_archives_are_refused(content: bytes) -> None:
    with pytest.raises(CheckpointError, match="no readable exported program"):
        ExportedNetwork(state_of(content))


def test_graphs_of_another_kind_are_refused() -> None:
    with pytest.raises(CheckpointError, match=r"one input \[batch, channels, height, width\]"):
        ExportedNetwork(state_of(export(nn.Linear(3, 2), torch.zeros(2, 3))))
    with pytest.raises(CheckpointError, match=r"one output \[batch, num_classes\]"):
        ExportedNetwork(state_of(export(nn.Conv2d(3, 2, 1), torch.zeros(2, 3, 4, 4))))
