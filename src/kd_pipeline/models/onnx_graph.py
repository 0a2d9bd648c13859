"""ONNX graphs as networks, run by onnxruntime."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from kd_pipeline.errors import CheckpointError, ParameterError
from kd_pipeline.models.libraries import require

_DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(uint8)": np.uint8}

_CONTENT, _BESIDE = "content", "beside/"
_EXTERNAL_FOLDER = "session.model_external_initializers_file_folder_path"


class OnnxNetwork(nn.Module):
    """An ONNX graph as a network: images [batch, channels, height, width] to logits.

    It runs on the images' device if onnxruntime is built for it, else on the CPU. For a graph of a
    fixed batch size, batches are split and the last one padded.
    """

    architecture: ClassVar[str] = "onnx"
    """In checkpoints."""

    def __init__(self, files: Mapping[str, Tensor]) -> None:
        """Open a graph.

        Args:
            files: Bytes as uint8 tensors: the ONNX file under `content`, and each file of
                external weights under `beside/<name>`.

        Raises:
            CheckpointError: If this is no ONNX graph that maps images to logits.
            ParameterError: If onnx or onnxruntime is not installed.
        """
        super().__init__()
        self.files = dict(files)
        self._sessions: dict[str, Any] = {}
        session = self._session("cpu")
        self.input_shape = _input_shape(session)
        """Batch, channels, height and width; None where the graph leaves one open."""
        self._input = session.get_inputs()[0]
        self._dtype = _DTYPES[self._input.type]

    @property
    def takes_raw_pixels(self) -> bool:
        """Whether it takes uint8 pixels, which it normalises itself."""
        return self._dtype is np.uint8

    def forward(self, images: Tensor) -> Tensor:
        """Map images to logits; for a graph of raw pixels they are in [0, 1]."""
        values = (images * 255).round() if self.takes_raw_pixels else images
        array = values.cpu().numpy().astype(self._dtype)
        fixed = self.input_shape[0]
        size, session = fixed or len(array), self._session(images.device.type)
        pieces = [array[start : start + size] for start in range(0, len(array), size)]
        logits = np.concatenate([self._run(session, piece, fixed) for piece in pieces])
        return torch.from_numpy(logits.astype(np.float32)).to(images.device)

    def _run(self, session: Any, piece: np.ndarray, fixed: int | None) -> np.ndarray:
        missing = 0 if fixed is None else fixed - len(piece)
        padded = np.concatenate([piece, np.repeat(piece[-1:], missing, axis=0)])
        (logits,) = session.run(None, {self._input.name: padded})
        return np.asarray(logits)[: len(piece)]

    def _session(self, device: str) -> Any:
        if device not in self._sessions:
            self._sessions[device] = _open_session(self.files, device=device)
        return self._sessions[device]


def read_onnx(file: Path) -> OnnxNetwork:
    """Read an ONNX file and the files of external weights beside it.

    Raises:
        ParameterError: If there is no such file, or onnx or onnxruntime is not installed.
        CheckpointError: If a file of weights is missing or in another folder, or this is no ONNX
            graph that maps images to logits.
    """
    if not file.is_file():
        raise ParameterError("file", "be an existing file", str(file))
    files = {_CONTENT: _bytes_of(file)}
    try:
        for name in external_files(files[_CONTENT].numpy().tobytes()):
            if not (other := file.parent / name).is_file():
                raise CheckpointError(f"the weights must lie beside it, got no file {name}")
            files[_BESIDE + name] = _bytes_of(other)
        return OnnxNetwork(files)
    except (CheckpointError, UnicodeDecodeError) as error:  # Names in it may be no UTF-8.
        raise CheckpointError(f"{file}: {error}") from error


def _bytes_of(file: Path) -> Tensor:
    return torch.from_numpy(np.frombuffer(bytearray(file.read_bytes()), dtype=np.uint8))


def external_files(content: bytes) -> list[str]:
    """Names of an ONNX graph's files of external weights.

    Raises:
        CheckpointError: If this is no ONNX graph, or a name could lead out of the graph's folder.
    """
    onnx, protobuf = (require(p, extra="onnx") for p in ("onnx", "google.protobuf.message"))
    try:
        locations = set(_locations(onnx.load_model_from_string(content)))
    except protobuf.DecodeError as error:
        raise CheckpointError(f"no readable ONNX graph: {error}") from error
    for location in locations:
        # Paths would reach other files; onnxruntime reads some names as memory addresses.
        # Protobuf leaves names that are not UTF-8 as bytes.
        is_plain = isinstance(location, str) and not set(location) & set("/\\\0")
        if not is_plain or location in ("", ".", ".."):
            raise CheckpointError(
                "the weights of an ONNX graph must lie in files beside it, named without folders, "
                f"got {location!r}"
            )
    return sorted(locations)


def _locations(message: Any) -> Iterator[str]:
    """Locations of external data in all tensors of a message, nested ones included."""
    for entry in getattr(message, "external_data", ()):
        if entry.key == "location":
            yield entry.value
    for field, value in message.ListFields():
        if field.message_type is not None:
            for part in [value] if hasattr(value, "ListFields") else value:
                yield from _locations(part)


def _open_session(files: Mapping[str, Tensor], *, device: str) -> Any:
    """Open an inference session on a device type if onnxruntime has it, else on the CPU."""
    ort, content = require("onnxruntime", extra="onnx"), files[_CONTENT].numpy().tobytes()
    beside = {k.removeprefix(_BESIDE): v.numpy() for k, v in files.items() if k.startswith(_BESIDE)}
    if missing := [name for name in external_files(content) if name not in beside]:
        raise CheckpointError(f"the weights of the ONNX graph must come with it, got no {missing}")
    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # Failures are raised.
    # The other format, ORT, is not checked by `external_files`.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    if beside:
        arrays = list(beside.values())
        options.add_external_initializers_from_files_in_memory(
            list(beside), arrays, [array.size for array in arrays]
        )
    wanted = ["CUDAExecutionProvider"] if device == "cuda" else []
    available = ort.get_available_providers()
    providers = [p for p in [*wanted, "CPUExecutionProvider"] if p in available]
    # All files are in memory; any name missed by `external_files` must not reach the disk.
    with tempfile.TemporaryDirectory() as empty:
        options.add_session_config_entry(_EXTERNAL_FOLDER, empty)
        try:
            return ort.InferenceSession(content, options, providers=providers)
        except Exception as error:  # onnxruntime's errors have no other common base.
            raise CheckpointError(f"onnxruntime cannot read the ONNX graph: {error}") from error


def _input_shape(session: Any) -> tuple[int | None, int | None, int | None, int | None]:
    """Shape of the images; refuses graphs that do not map them to logits."""
    inputs, outputs = session.get_inputs(), session.get_outputs()
    if len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].type not in _DTYPES:
        raise CheckpointError(
            "an ONNX teacher must have one input [batch, channels, height, width] of "
            f"{', '.join(_DTYPES)}, got {_described(inputs)}"
        )
    if len(outputs) != 1 or len(outputs[0].shape) != 2:
        raise CheckpointError(
            f"an ONNX teacher must have one output [batch, num_classes], got {_described(outputs)}"
        )
    batch, channels, height, width = (d if isinstance(d, int) else None for d in inputs[0].shape)
    return batch, channels, height, width


def _described(values: Sequence[Any]) -> str:
    return ", ".join(f"{v.name} {v.type} {v.shape}" for v in values) or "none"
