"""A network that is a torch.export archive, read so that nothing in the file can run code.

`torch.export.load` unpickles records, evaluates expressions and looks functions up by name, all as
the file asks. So only the plain parts of an archive are kept: tensors as raw bytes, and a graph of
numerical operators.
"""

import io
import json
import re
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from kd_pipeline.errors import CheckpointError
from kd_pipeline.models.file_bytes import bytes_of

_PLAIN = ("archive_format", "archive_version", "byteorder", ".data/version")
_OPERATORS = re.compile(
    r"torch\.ops\.(aten|prims|higher_order|torchvision|quantized_decomposed)(\.(?!__)\w+)+"
    r"|torch\.sym_\w+|math\.[a-z]\w*"
    r"|_operator\.(getitem|add|sub|mul|truediv|floordiv|mod|neg|pow|eq|ne|lt|le|gt|ge|and_|or_)"
)
# sympy evaluates expressions as Python: only sizes, numbers and arithmetic are let through.
_EXPRESSION = re.compile(
    r"(?:Symbol\('[su]\d+'(?:, [a-z]+=(?:True|False))*\)|Integer|Rational|Add|Mul|Pow|[su]\d+|\d+"
    r"|FloorDiv|CeilDiv|CleanDiv|Mod|PythonMod|Max|Min|[-+*/(), ])*"
)


class ExportedNetwork(nn.Module):
    """Runs an exported graph as a network: images [batch, channels, height, width] to logits.

    The graph is kept apart from the module's own children: it has no train and eval modes, being
    fixed in the one in which it was exported, and follows the images' device by itself.
    """

    architecture: ClassVar[str] = "exported_program"

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        """Load a graph.

        Args:
            state: The archive's bytes, as `file_bytes.state_of` keeps them.

        Raises:
            CheckpointError: If it is no exported program that maps images to logits, or holds
                anything that could run code.
        """
        super().__init__()
        self._program = load_program(bytes_of(state))
        example = _image_input(self._program)
        self.input_shape = tuple(d if isinstance(d, int) else None for d in example.shape)
        """Batch, channels, height and width; None where the graph leaves one open."""
        self.num_outputs = _logits_output(self._program)
        """Width of the head; None where the graph leaves it open."""
        self._dtype = example.dtype
        self._graphs: dict[str, Any] = {}

    @property
    def takes_raw_pixels(self) -> bool:
        """Whether it takes uint8 pixels and so normalises them itself."""
        return self._dtype is torch.uint8

    def forward(self, images: Tensor) -> Tensor:
        """Score images [batch, channels, height, width]; in [0, 1] for a graph of raw pixels."""
        values = (images * 255).round() if self.takes_raw_pixels else images
        values, fixed = values.to(self._dtype), self.input_shape[0]
        # An open batch size was traced with several images and may not take a single one.
        pieces = [
            pad_batch(piece, fixed or 2) for piece in torch.split(values, fixed or len(values))
        ]
        graph = self._graph(images.device)
        logits = [graph(padded)[:kept] for padded, kept in pieces]
        return torch.cat(logits).float()

    def _graph(self, device: torch.device) -> Any:
        name = str(device)
        if name not in self._graphs:
            from torch.export.passes import move_to_device_pass

            program = move_to_device_pass(self._program, name)
            self._graphs[name] = program.module(check_guards=False)
        return self._graphs[name]


def pad_batch(images: Tensor, size: int) -> tuple[Tensor, int]:
    """Repeat the last image until there are at least `size`.

    Returns:
        The batch, and how many of it are images of their own.
    """
    missing = max(0, size - len(images))
    padded = torch.cat([images, images[-1:].expand(missing, -1, -1, -1)]) if missing else images
    return padded, len(images)


def load_program(content: bytes) -> Any:
    """Load a `.pt2` archive of one exported program, less what could run code.

    Raises:
        CheckpointError: If it is damaged or needs any of that.
    """
    plain = plain_archive(content)
    try:
        return torch.export.load(io.BytesIO(plain))
    except Exception as error:  # torch raises assertion, key and type errors of its own there.
        raise CheckpointError(f"the exported program cannot be loaded: {error}") from error


def plain_archive(content: bytes) -> bytes:
    """Write an archive anew, with its graph and raw tensors and nothing else.

    The example inputs go: they are a pickle, and may be images that the model was trained on.

    Raises:
        CheckpointError: If the archive holds something without which it cannot be used.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            records = dict(_plain_records(archive))
    except (zipfile.BadZipFile, KeyError, ValueError, TypeError) as error:
        raise CheckpointError(f"no readable exported program: {error!r}") from error
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", zipfile.ZIP_STORED) as archive:
        for name, record in records.items():
            # A fixed date: equal programs have equal bytes, and so equal fingerprints.
            archive.writestr(zipfile.ZipInfo(f"archive/{name}"), record)
    return written.getvalue()


def _plain_records(archive: zipfile.ZipFile) -> Iterator[tuple[str, bytes]]:
    names = {name.partition("/")[2]: name for name in archive.namelist()}
    graphs = [n for n in names if n.startswith("models/")]
    if len(graphs) != 1 or not graphs[0].endswith(".json"):
        raise ValueError(f"it must hold one model, got {graphs}")
    model = graphs[0].removeprefix("models/").removesuffix(".json")
    for name in _PLAIN:
        if name in names:
            yield name, archive.read(names[name])
    program = json.loads(archive.read(names[graphs[0]]))
    program["guards_code"] = []
    _check_graph(program)
    yield graphs[0], json.dumps(program).encode()
    for folder, kind in (("data/weights/", "weights"), ("data/constants/", "constants")):
        config = archive.read(names[f"{folder}{model}_{kind}_config.json"])
        yield f"{folder}{model}_{kind}_config.json", config
        for file in sorted(_tensor_files(json.loads(config), kind)):
            yield folder + file, archive.read(names[folder + file])
    yield f"data/sample_inputs/{model}.pt", b""


def _tensor_files(config: Mapping[str, Any], kind: str) -> set[str]:
    prefix = {"weights": "weight_", "constants": "tensor_"}[kind]
    for name, payload in config["config"].items():
        if payload["use_pickle"] or not payload["path_name"].startswith(prefix):
            raise CheckpointError(
                f"an exported program must hold plain tensors only, got {name} in "
                f"{payload['path_name']}, which would be unpickled and can run code"
            )
    return {payload["path_name"] for payload in config["config"].values()}


def _check_graph(part: Any) -> None:
    """Refuse operators and expressions that are more than arithmetic, anywhere in the graph."""
    if isinstance(part, list):
        for item in part:
            _check_graph(item)
    elif isinstance(part, dict):
        for key, item in part.items():
            rule = {"target": _OPERATORS, "expr_str": _EXPRESSION}.get(key)
            if rule is not None and isinstance(item, str) and not rule.fullmatch(item):
                raise CheckpointError(
                    f"an exported program must be made of numerical operators, got {key} {item!r}"
                )
            _check_graph(item)


def _image_input(program: Any) -> Any:
    users = set(program.graph_signature.user_inputs)
    inputs = [
        node.meta["val"]
        for node in program.graph.nodes
        if node.op == "placeholder" and node.name in users
    ]
    images = [v for v in inputs if isinstance(v, Tensor) and v.ndim == 4]
    if len(inputs) != 1 or len(images) != 1 or images[0].dtype not in (torch.uint8, torch.float32):
        raise CheckpointError(
            "an exported teacher must have one input [batch, channels, height, width] of uint8 or "
            f"float32, got {[str(v) for v in inputs]}"
        )
    return images[0]


def _logits_output(program: Any) -> int | None:
    names = program.graph_signature.user_outputs
    values = [node.meta["val"] for node in program.graph.nodes if node.name in set(names)]
    if len(values) != 1 or values[0].ndim != 2:
        raise CheckpointError(
            "an exported teacher must have one output [batch, num_classes], got "
            f"{[str(v) for v in values]}"
        )
    width = values[0].shape[1]
    return width if isinstance(width, int) else None
