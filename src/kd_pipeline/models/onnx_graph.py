"""A network that is an ONNX file, run by onnxruntime."""

import tempfile
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from kd_pipeline.errors import CheckpointError, ParameterError
from kd_pipeline.models.file_bytes import bytes_of, state_of
from kd_pipeline.models.onnx_external import external_files

_DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(uint8)": np.uint8}

_BESIDE = "beside/"
_EXTERNAL_FOLDER = "session.model_external_initializers_file_folder_path"


class OnnxNetwork(nn.Module):
    """Runs an ONNX graph as a network: images [batch, channels, height, width] to logits.

    It computes on the CPU, or on the GPU where onnxruntime was installed for it, and gives logits
    on the images' device. A graph of a fixed batch size gets its batches in pieces.
    """

    architecture: ClassVar[str] = "onnx"

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        """Open a graph.

        Args:
            state: The file's bytes as `file_bytes.state_of` keeps them, and those of the files
                beside it, as `read_onnx` finds them.

        Raises:
            CheckpointError: If it is no ONNX graph that maps images to logits.
            ParameterError: If onnxruntime is not installed.
        """
        super().__init__()
        self._state = dict(state)
        # Sessions are not tensors: a module would try to copy and move them.
        self._sessions: dict[str, Any] = {}
        session = self._session("cpu")
        self.input_shape = _image_input(session)
        """Batch, channels, height and width; None where the graph leaves one open."""
        self.num_outputs = _logits_output(session)
        """Width of the head; None where the graph does not say."""
        self._input = session.get_inputs()[0]
        self._dtype = _DTYPES[self._input.type]

    @property
    def takes_raw_pixels(self) -> bool:
        """Whether it takes uint8 pixels and so normalises them itself."""
        return self._dtype is np.uint8

    def forward(self, images: Tensor) -> Tensor:
        """Score images [batch, channels, height, width]; in [0, 1] for a graph of raw pixels."""
        values = images * 255 if self.takes_raw_pixels else images
        values = values.round() if self.takes_raw_pixels else values
        array = values.cpu().numpy().astype(self._dtype)
        fixed = self.input_shape[0]
        pieces = [
            array[i : i + (fixed or len(array))] for i in range(0, len(array), fixed or len(array))
        ]
        session = self._session(images.device.type)
        logits = np.concatenate([self._run(session, piece, fixed) for piece in pieces])
        return torch.from_numpy(logits.astype(np.float32)).to(images.device)

    def _run(self, session: Any, piece: np.ndarray, fixed: int | None) -> np.ndarray:
        missing = 0 if fixed is None else fixed - len(piece)
        padded = np.concatenate([piece, np.repeat(piece[-1:], missing, axis=0)])
        (logits,) = session.run(None, {self._input.name: padded})
        return np.asarray(logits)[: len(piece)]

    def _session(self, device: str) -> Any:
        if device not in self._sessions:
            self._sessions[device] = open_session(self._state, device=device)
        return self._sessions[device]


def read_onnx(file: Path) -> dict[str, Tensor]:
    """Read an ONNX file, and the files beside it that it says hold its weights, into a state.

    Raises:
        CheckpointError: If one of these is missing or would lie elsewhere, or onnxruntime cannot
            open the graph.
    """
    content = file.read_bytes()
    state = state_of(content)
    for name in _plain_names(external_files(content)):
        if not (other := file.parent / name).is_file():
            raise CheckpointError(f"the weights of {file} must lie beside it, got no file {name}")
        state[_BESIDE + name] = next(iter(state_of(other.read_bytes()).values()))
    open_session(state, device="cpu")
    return state


def _plain_names(locations: Set[str]) -> list[str]:
    for location in locations:
        # As a path it would reach files elsewhere; onnxruntime takes some for memory addresses.
        if location in ("", ".", "..") or set(location) & set("/\\\0"):
            raise CheckpointError(
                "the weights of an ONNX graph must lie in files beside it, named without folders, "
                f"got {location!r}"
            )
    return sorted(locations)


def open_session(state: Mapping[str, Tensor], *, device: str) -> Any:
    """Open an inference session on a device type; onnxruntime's own CPU build has only `cpu`.

    Raises:
        CheckpointError: If onnxruntime cannot read the graph, or its weights are not in the state.
    """
    ort = _onnxruntime()
    content = bytes_of(state)
    beside = {k.removeprefix(_BESIDE): v.numpy() for k, v in state.items() if k.startswith(_BESIDE)}
    if missing := [n for n in _plain_names(external_files(content)) if n not in beside]:
        raise CheckpointError(f"the weights of the ONNX graph must come with it, got no {missing}")
    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # What fails is raised; its log would only repeat it.
    # Its other format is not what `external_files` reads.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    if beside:
        lengths = [array.size for array in beside.values()]
        options.add_external_initializers_from_files_in_memory(
            list(beside), list(beside.values()), lengths
        )
    wanted = ["CUDAExecutionProvider"] if device == "cuda" else []
    available = ort.get_available_providers()
    providers = [p for p in [*wanted, "CPUExecutionProvider"] if p in available]
    # All files are in memory: what is looked for on disk is looked for where nothing is.
    with tempfile.TemporaryDirectory() as empty:
        options.add_session_config_entry(_EXTERNAL_FOLDER, empty)
        try:
            return ort.InferenceSession(content, options, providers=providers)
        except Exception as error:  # onnxruntime's errors have no common base but this one.
            raise CheckpointError(f"onnxruntime cannot read the ONNX graph: {error}") from error


def _onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        rule = "have onnxruntime installed: pip install 'kd_pipeline[onnx]'"
        raise ParameterError("kind", rule, "onnx") from error
    return onnxruntime


def _image_input(session: Any) -> tuple[int | None, int | None, int | None, int | None]:
    inputs = session.get_inputs()
    if len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].type not in _DTYPES:
        found = ", ".join(f"{i.name} {i.type} {i.shape}" for i in inputs)
        raise CheckpointError(
            "an ONNX teacher must have one input [batch, channels, height, width] of "
            f"{', '.join(_DTYPES)}, got {found or 'none'}"
        )
    batch, channels, height, width = (d if isinstance(d, int) else None for d in inputs[0].shape)
    return batch, channels, height, width


def _logits_output(session: Any) -> int | None:
    outputs = session.get_outputs()
    if len(outputs) != 1 or len(outputs[0].shape) != 2:
        found = ", ".join(f"{o.name} {o.type} {o.shape}" for o in outputs)
        raise CheckpointError(
            f"an ONNX teacher must have one output [batch, num_classes], got {found or 'none'}"
        )
    width = outputs[0].shape[1]
    return width if isinstance(width, int) else None
