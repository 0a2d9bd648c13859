"""Exported programs: the same logits in batches of any size, and no code from the file."""

import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kd_pipeline.errors import CheckpointError
from kd_pipeline.models.exported_program import ExportedNetwork, plain_archive
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


def test_the_examples_and_all_that_is_not_needed_stay_behind(archive: bytes) -> None:
    plain = plain_archive(archive)
    assert plain_archive(plain) == plain
    with zipfile.ZipFile(io.BytesIO(plain)) as records:
        (examples,) = [n for n in records.namelist() if "sample_inputs" in n]
        assert records.read(examples) == b""


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


@pytest.mark.parametrize(
    "target", ["torch.os.system", "torch.ops.aten.__class__", "_operator.methodcaller", "#x:y"]
)
def test_functions_that_are_not_numerical_are_refused(archive: bytes, target: str) -> None:
    def call(program: dict[str, Any]) -> None:
        program["graph_module"]["graph"]["nodes"][0]["target"] = target

    with pytest.raises(CheckpointError, match="must be made of numerical operators, got target"):
        ExportedNetwork(state_of(edited(archive, "models/model.json", in_graph(call))))


def test_expressions_that_are_not_arithmetic_are_refused(archive: bytes) -> None:
    """sympy would evaluate them as Python."""

    def evaluate(program: dict[str, Any]) -> None:
        program["graph_module"]["graph"]["nodes"][0]["expr_str"] = "eval(chr(49))"

    with pytest.raises(CheckpointError, match="got expr_str 'eval"):
        ExportedNetwork(state_of(edited(archive, "models/model.json", in_graph(evaluate))))


def test_guards_are_code_and_go(archive: bytes, tmp_path: Path) -> None:
    def guard(program: dict[str, Any]) -> None:
        program["guards_code"] = [f"__import__('os').system('touch {tmp_path}/ran')"]

    exported = ExportedNetwork(state_of(edited(archive, "models/model.json", in_graph(guard))))
    exported(torch.zeros(2, 3, 4, 4))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 cut off"])
def test_damaged_archives_are_refused(content: bytes) -> None:
    with pytest.raises(CheckpointError, match="no readable exported program"):
        ExportedNetwork(state_of(content))


def test_graphs_of_another_kind_are_refused() -> None:
    with pytest.raises(CheckpointError, match=r"one input \[batch, channels, height, width\]"):
        ExportedNetwork(state_of(export(nn.Linear(3, 2), torch.zeros(2, 3))))
    with pytest.raises(CheckpointError, match=r"one output \[batch, num_classes\]"):
        ExportedNetwork(state_of(export(nn.Conv2d(3, 2, 1), torch.zeros(2, 3, 4, 4))))
