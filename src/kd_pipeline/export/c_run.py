"""Compile the C target's files with the system's compiler: to run them here, and for their size."""

import ctypes
import os
import re
import shlex
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kd_pipeline.errors import ExportError
from kd_pipeline.export.target import Runner

_STANDARD = ("-std=c99",)
_DEFINITION = re.compile(r"#define KD_(\w+) \(?(-?[\d.e+-]+)f?\)?")


def measure_sizes(file: Path) -> dict[str, int]:
    """Flash and static RAM of a model.c compiled for size.

    Args:
        file: Its model.h lies beside it.

    Returns:
        `flash_bytes`, code and constants; `ram_bytes`, the arena; and `size_bytes`, the former. The
        compiler is that of the environment variable KD_DEVICE_CC, such as "arm-none-eabi-gcc
        -mcpu=cortex-m4 -mthumb", else this machine's. The stack is not counted.

    Raises:
        ExportError: If there is no compiler, or it fails.
    """
    command = size_compiler()
    with tempfile.TemporaryDirectory() as folder:
        compiled = Path(folder, "model.o")
        # Tables that unwind the stack, and those of moved addresses, do not go to a device.
        flags = ("-Os", "-fno-pic", "-fno-asynchronous-unwind-tables", "-c")
        _run([*shlex.split(command), *_STANDARD, *flags, str(file), "-o", str(compiled)])
        row = _run(["size", str(compiled)]).splitlines()[1]
    text, data, zeroed = (int(number) for number in row.split()[:3])
    flash = text + data
    return {"size_bytes": flash, "flash_bytes": flash, "ram_bytes": data + zeroed}


def open_model(file: Path, num_threads: int) -> Runner:  # noqa: ARG001
    """Compile a model.c for this machine and load it.

    Args:
        file: Its model.h lies beside it.
        num_threads: Not used: the code has one thread.

    Returns:
        Maps uint8 pixels [batch, channels, height, width] to float32 logits [batch, num_classes],
        one image after the other.

    Raises:
        ExportError: If there is no compiler, or it fails.
    """
    facts = dict(_DEFINITION.findall(file.with_name("model.h").read_text()))
    shape = tuple(int(facts[name]) for name in ("CHANNELS", "HEIGHT", "WIDTH"))
    scale, zero_point = np.float32(facts["LOGIT_SCALE"]), int(facts["LOGIT_ZERO_POINT"])
    predict = _load(file).kd_predict

    def run(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        if pixels.dtype != np.uint8 or pixels.shape[1:] != shape:
            got = f"{pixels.dtype} {list(pixels.shape)}"
            raise ExportError(f"`pixels` must be uint8 [batch, {str(shape)[1:-1]}], got {got}")
        pixels = np.ascontiguousarray(pixels)
        logits = np.empty((len(pixels), int(facts["NUM_CLASSES"])), dtype=np.int8)
        for image, row in zip(pixels, logits, strict=True):
            predict(ctypes.c_void_p(image.ctypes.data), ctypes.c_void_p(row.ctypes.data))
        return scale * (logits.astype(np.float32) - zero_point)

    return run


def _load(file: Path) -> ctypes.CDLL:
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder, "model.so")
        flags = ("-O3", "-shared", "-fPIC")
        _run([*shlex.split(host_compiler()), *_STANDARD, *flags, str(file), "-o", str(library)])
        return ctypes.CDLL(str(library))  # Stays in memory when the file is gone.


def size_compiler() -> str:
    """The compiler that sizes are measured with: KD_DEVICE_CC, or this machine's."""
    return os.environ.get("KD_DEVICE_CC") or host_compiler()


def host_compiler() -> str:
    """The compiler of this machine: that of the environment variable CC, or cc."""
    return os.environ.get("CC") or "cc"


def _run(command: Sequence[str]) -> str:
    """Run a program, and return what it prints."""
    try:
        done = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603
    except FileNotFoundError as error:
        raise ExportError(
            f"the target `c` must have the program {command[0]!r} on the PATH; gcc or clang, and "
            "binutils for `size`, come with the system's packages, such as `apt install gcc`"
        ) from error
    except subprocess.CalledProcessError as error:
        raise ExportError(f"{command[0]} failed on model.c: {error.stderr}") from error
    return done.stdout
