"""ExecuTorch's programs for phones: float32 and int8, run by XNNPACK on uint8 pixels."""

import io
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch._decomp import get_decompositions

from kd_pipeline.errors import ExportError
from kd_pipeline.export.target import ExportedFile, ExportJob, Precision, Runner, Target
from kd_pipeline.models.classifier import Classifier
from kd_pipeline.models.libraries import quiet_export, require
from kd_pipeline.randomness import seeded

_NAME = "executorch"
_PACKAGES = ("executorch", "torchao")
_FILES: dict[Precision, str] = {"float32": "model.pte", "int8": "model.int8.pte"}


def export_executorch(job: ExportJob) -> list[ExportedFile]:
    """Write a float32 and an int8 program, both of one image a call.

    A batch of a fixed size: ExecuTorch's antialiased resize refuses any other than the largest, and
    memory is planned for the largest, 64 times what one image needs, for no gain per image.

    The job's metadata are methods without arguments, which return a string each.

    Raises:
        ExportError: If ExecuTorch cannot take the network; names the operators.
        ParameterError: If executorch or torchao is not installed.
    """
    with quiet_export(), seeded(0):  # Lowering draws random numbers.
        _import_packages()
        classifier = job.build()
        files = [_write(classifier, job, "float32")]
        _quantise(classifier, job.calibration)
        return [*files, _write(classifier, job, "int8")]


def open_executorch(path: Path, num_threads: int) -> Runner:
    """Open a program; batches of any size are run image by image.

    Raises:
        ParameterError: If executorch or torchao is not installed.
    """
    with quiet_export():
        _import_packages()
    return _Program(path, num_threads)


TARGET = Target(
    files=_FILES,
    export=export_executorch,
    open=open_executorch,
    packages=_PACKAGES,
    extra=_NAME,
)


def _write(classifier: Classifier, job: ExportJob, precision: Precision) -> ExportedFile:
    path = job.folder / _FILES[precision]
    path.write_bytes(_lower(classifier, job))
    return ExportedFile(_NAME, precision, path, {"size_bytes": path.stat().st_size})


def _lower(classifier: Classifier, job: ExportJob) -> bytes:
    """Compile a classifier; what XNNPACK cannot run is left to ExecuTorch's own operators."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    example = torch.zeros(1, *job.input_shape, dtype=torch.uint8)
    # ExecuTorch has no such operator; as a maximum, or a pooling of fixed windows, it has.
    decompositions = get_decompositions([torch.ops.aten.adaptive_max_pool2d])
    try:
        exported = torch.export.export(classifier, (example,)).run_decompositions(decompositions)
        program = to_edge_transform_and_lower(
            exported, partitioner=[XnnpackPartitioner()], constant_methods=dict(job.metadata)
        ).to_executorch()
    except Exception as error:  # Those of torch.export and ExecuTorch have no other common base.
        reason = str(error).strip().partition("\n")[0]
        message = f"ExecuTorch cannot take {job.checkpoint.architecture}: {reason}"
        raise ExportError(message) from error
    _check_operators(program.executorch_program, job.checkpoint.architecture)
    return bytes(program.buffer)


def _check_operators(program: Any, architecture: str) -> None:
    """Refuse a program with operators that the runtime lacks: it would fail when it is loaded."""
    from executorch.runtime import Runtime

    used = {f"{op.name}.{op.overload}" for plan in program.execution_plan for op in plan.operators}
    if missing := used - Runtime.get().operator_registry.operator_names:
        names = ", ".join(sorted(missing))
        raise ExportError(f"ExecuTorch cannot take {architecture}: it has no operators {names}")


def _quantise(classifier: Classifier, calibration: Tensor) -> None:
    """Replace the network by one of int8 operators, with symmetric weights per channel.

    Resizing and normalisation stay in float32, so that pixels are rounded once.

    Args:
        classifier: In eval mode.
        calibration: uint8 pixels [num_rows, channels, height, width].
    """
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    scheme = get_symmetric_quantization_config(is_per_channel=True)
    example = torch.zeros(1, *classifier.preprocessing.shape)
    network = torch.export.export(classifier.network, (example,)).module()
    classifier.network = prepare_pt2e(network, XNNPACKQuantizer().set_global(scheme))
    with torch.no_grad():
        for pixels in calibration:  # One by one: the exported network takes no other batch.
            classifier(pixels[None])
    classifier.network = convert_pt2e(classifier.network)


class _Program:
    """Runs a program with so many threads.

    All programs of a process share one pool of threads. Where another size is asked for, the
    runtime frees the pool and makes a new one; a method loaded before then uses freed memory and
    ends the process. So every program loads its method again after such a change.
    """

    _num_changes: ClassVar[int] = 0
    """How often this class has changed the size of the pool."""

    def __init__(self, path: Path, num_threads: int) -> None:
        self._content = path.read_bytes()
        self._num_threads = num_threads
        self._loaded_at = -1
        self._prepare()

    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        self._prepare()
        logits = [self._method.execute((image[None],))[0] for image in torch.tensor(pixels)]
        return torch.cat(logits).numpy()

    def _prepare(self) -> None:
        """Set the size of the pool, and load the method if the pool is another than before."""
        from executorch.extension.pybindings import portable_lib
        from executorch.runtime import Runtime

        # The runtime prints which files of the CPU it reads, and the size of the pool.
        with redirect_stderr(io.StringIO()):
            if portable_lib._threadpool_get_thread_count() != self._num_threads:
                portable_lib._unsafe_reset_threadpool(self._num_threads)
                _Program._num_changes += 1
        if self._loaded_at != _Program._num_changes:
            self._method: Any = Runtime.get().load_program(self._content).load_method("forward")
            self._loaded_at = _Program._num_changes


def _import_packages() -> None:
    for package in _PACKAGES:
        require(package, extra=_NAME)
    require("executorch.runtime", extra=_NAME)
