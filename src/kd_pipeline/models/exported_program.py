"""A network that is a torch.export archive, read so that nothing in the file can run code.

`torch.export.load` unpickles records, and writes what the file names into source that it runs. So
an archive is read here as data: its tensors as raw bytes, its graph as steps of known operators.
"""

import io
import json
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from kd_pipeline.errors import CheckpointError
from kd_pipeline.models.exported_graph import DTYPES, Graph, read_graph
from kd_pipeline.models.file_bytes import bytes_of


class ExportedNetwork(nn.Module):
    """Runs an exported graph as a network: images [batch, channels, height, width] to logits.

    The graph's weights are kept apart from the module's own: it has no train and eval modes, being
    fixed in the one in which it was exported, and follows the images' device by itself.
    """

    architecture: ClassVar[str] = "exported_program"

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        """Load a graph.

        Args:
            state: The archive's bytes, as `file_bytes.state_of` keeps them.

        Raises:
            CheckpointError: If it is no exported program that maps images to logits, or needs
                anything that could run code.
        """
        super().__init__()
        program = read_program(bytes_of(state))
        self._graph = program.graph
        self._tensors = {"cpu": program.tensors}
        self.input_shape = program.graph.image_shape
        """Batch, channels, height and width; None where the graph leaves one open."""
        self.num_outputs = program.graph.logits_shape[1]
        """Width of the head; None where the graph leaves it open."""

    @property
    def takes_raw_pixels(self) -> bool:
        """Whether it takes uint8 pixels and so normalises them itself."""
        return self._graph.image_dtype is torch.uint8

    def forward(self, images: Tensor) -> Tensor:
        """Score images [batch, channels, height, width]; in [0, 1] for a graph of raw pixels."""
        values = (images * 255).round() if self.takes_raw_pixels else images
        values, fixed = values.to(self._graph.image_dtype), self.input_shape[0]
        # An open batch size was traced with several images and may not take a single one.
        pieces = [
            pad_batch(piece, fixed or 2) for piece in torch.split(values, fixed or len(values))
        ]
        tensors = self._tensors_on(images.device)
        logits = [self._graph.run(padded, tensors)[:kept] for padded, kept in pieces]
        return torch.cat(logits).float()

    def _tensors_on(self, device: torch.device) -> Mapping[str, Tensor]:
        name = str(device)
        if name not in self._tensors:
            self._tensors[name] = {k: v.to(device) for k, v in self._tensors["cpu"].items()}
        return self._tensors[name]


def pad_batch(images: Tensor, size: int) -> tuple[Tensor, int]:
    """Repeat the last image until there are at least `size`.

    Returns:
        The batch, and how many of it are images of their own.
    """
    missing = max(0, size - len(images))
    padded = torch.cat([images, images[-1:].expand(missing, -1, -1, -1)]) if missing else images
    return padded, len(images)


@dataclass(frozen=True)
class Program:
    """A graph and the tensors that it names."""

    graph: Graph
    tensors: Mapping[str, Tensor]


def read_program(content: bytes) -> Program:
    """Read a `.pt2` archive of one exported program.

    Its example inputs, which are a pickle and may be images that the model was trained on, its
    traces and its trees of arguments are never looked at.

    Raises:
        CheckpointError: If it is damaged, or needs more than known operators and raw tensors.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return _read_records({n.partition("/")[2]: n for n in archive.namelist()}, archive)
    except (
        *(zipfile.BadZipFile, NotImplementedError, EOFError, OSError),
        *(LookupError, ValueError, TypeError, AttributeError, RuntimeError, RecursionError),
    ) as error:
        raise CheckpointError(f"no readable exported program: {error!r}") from error


def _read_records(names: Mapping[str, str], archive: zipfile.ZipFile) -> Program:
    graphs = [n for n in names if n.startswith("models/")]
    if len(graphs) != 1 or not graphs[0].endswith(".json"):
        raise ValueError(f"it must hold one model, got {graphs}")
    order = archive.read(names["byteorder"]).decode() if "byteorder" in names else "little"
    if order != sys.byteorder:
        raise ValueError(f"its bytes must be in this machine's order {sys.byteorder}, got {order}")
    model = graphs[0].removeprefix("models/").removesuffix(".json")
    graph = read_graph(json.loads(archive.read(names[graphs[0]])))
    tensors: dict[str, Tensor] = {}
    for folder, kind in (("data/weights/", "weights"), ("data/constants/", "constants")):
        config = json.loads(archive.read(names[f"{folder}{model}_{kind}_config.json"]))["config"]
        records = {
            file: _bytes_tensor(archive.read(names[folder + file]))
            for file in _tensor_files(config, kind)
        }
        tensors |= {
            name: _stored_tensor(records[stored["path_name"]], stored["tensor_meta"])
            for name, stored in config.items()
        }
    if missing := sorted(set(graph.weights.values()) - set(tensors)):
        raise ValueError(f"it must hold the weights that its graph names, got none of {missing}")
    return Program(graph, tensors)


def _tensor_files(config: Mapping[str, Any], kind: str) -> list[str]:
    prefix = {"weights": "weight_", "constants": "tensor_"}[kind]
    for name, stored in config.items():
        if stored["use_pickle"] or not stored["path_name"].startswith(prefix):
            raise CheckpointError(
                f"an exported program must hold plain tensors only, got {name} in "
                f"{stored['path_name']}, which would be unpickled and can run code"
            )
    return sorted({stored["path_name"] for stored in config.values()})


def _bytes_tensor(record: bytes) -> Tensor:
    # frombuffer takes no empty buffer, and would warn of one that cannot be written.
    return torch.frombuffer(bytearray(record), dtype=torch.uint8) if record else torch.empty(0)


def _stored_tensor(record: Tensor, meta: Mapping[str, Any]) -> Tensor:
    dtype = DTYPES[meta["dtype"]]
    sizes, strides = ([size["as_int"] for size in meta[key]] for key in ("sizes", "strides"))
    elements = record.view(dtype) if record.numel() else torch.empty(0, dtype=dtype)
    # Refuses what would lie outside of the record.
    return elements.as_strided(sizes, strides, meta["storage_offset"]["as_int"])
