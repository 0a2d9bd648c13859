"""Compiling and running: sizes, pixels that do not fit, compilers that are missing or fail."""

import re
from pathlib import Path

import numpy as np
import pytest

from kd_pipeline.errors import ExportError
from kd_pipeline.export.c_code import write_model
from kd_pipeline.export.c_layers import (
    Activation,
    Convolution,
    FixedPoint,
    IntegerNetwork,
    PixelTable,
    Window,
)
from kd_pipeline.export.c_run import measure_sizes, open_model


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """1,000 x 27 weights on 3x3 pixels of three channels."""
    pixels, logits = Activation(3, 3, 3, 1.0, 0), Activation(1, 1, 1000, 1.0, 0)
    table = PixelTable(inputs=(), output=pixels, table=np.ones((3, 256), np.int8))
    head = Convolution(
        inputs=(pixels,),
        output=logits,
        window=Window(3, 3),
        groups=1,
        weights=np.ones((1000, 3, 3, 3), np.int8),
        bias=np.zeros(1000, np.int32),
        factors=(FixedPoint(2**30, 30),) * 1000,
    )
    path = tmp_path / "model.c"
    network = IntegerNetwork((table, head))
    write_model(network, path, class_names=["a"] * 1000, metadata={})
    return path


def test_sizes_are_of_code_constants_and_arena(file: Path) -> None:
    sizes = measure_sizes(file)
    # Weights, bias, multiplier and shift of each filter, a pointer to each name, the table.
    constants = 1000 * (27 + 4 + 4 + 1 + 8) + 3 * 256
    assert constants < sizes["flash_bytes"] < constants + 4096
    assert sizes["size_bytes"] == sizes["flash_bytes"]
    assert 27 <= sizes["ram_bytes"] < 64


def test_runs_each_image_of_any_batch(file: Path) -> None:
    run = open_model(file, 4)
    for batch in (0, 1, 3):
        logits = run(np.zeros((batch, 3, 3, 3), np.uint8))
        np.testing.assert_array_equal(logits, np.full((batch, 1000), 27, np.float32))
        assert logits.dtype == np.float32


@pytest.mark.parametrize(
    ("pixels", "got"),
    [
        (np.zeros((2, 3, 3, 4), np.uint8), r"uint8 \[2, 3, 3, 4\]"),
        (np.zeros((3, 3, 3), np.uint8), r"uint8 \[3, 3, 3\]"),
        (np.zeros((2, 3, 3, 3), np.float32), r"float32 \[2, 3, 3, 3\]"),
    ],
)
def test_refuses_other_pixels(file: Path, pixels: np.ndarray, got: str) -> None:
    with pytest.raises(ExportError, match=rf"must be uint8 \[batch, 3, 3, 3\], got {got}"):
        open_model(file, 1)(pixels)


def test_a_missing_compiler_is_named(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    for use in (measure_sizes, lambda path: open_model(path, 1)):
        with pytest.raises(ExportError, match=r"program 'no-such-compiler' on the PATH; gcc or"):
            use(file)


def test_a_compilers_error_is_shown(file: Path) -> None:
    file.write_text("int kd_predict(void) { return x; }\n")
    with pytest.raises(ExportError, match=r"cc failed on model.c: .*(?s:.)*'?x'?"):
        open_model(file, 1)


def test_sizes_may_be_of_a_devices_compiler(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any compiler will do to show that it is called, and with its flags."""
    usual = measure_sizes(file)["ram_bytes"]
    source = file.read_text()
    file.write_text(re.sub(r"arena\[KD_ARENA_BYTES\]", "arena[KD_ARENA_BYTES + EXTRA]", source))
    monkeypatch.setenv("KD_DEVICE_CC", "cc -DEXTRA=1024")
    assert measure_sizes(file)["ram_bytes"] == usual + 1024
