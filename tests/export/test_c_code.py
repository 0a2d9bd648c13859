"""The C code: a convolution worked by hand, strict compilers, sanitisers, odd class names."""

import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

from kd_pipeline.export.c_code import write_model
from kd_pipeline.export.c_layers import (
    Activation,
    Addition,
    AveragePool,
    ChannelPadding,
    Convolution,
    FixedPoint,
    IntegerNetwork,
    MaxPool,
    PixelTable,
    Window,
)
from kd_pipeline.export.c_run import open_model

ONE, QUARTER = FixedPoint(2**30, 30), FixedPoint(2**30, 32)
WARNINGS = ("all", "extra", "conversion", "sign-conversion", "shadow", "error")
STRICT = ["-std=c99", "-pedantic", *(f"-W{name}" for name in WARNINGS)]


def pixel_table(output: Activation) -> PixelTable:
    """Pixels as they are, up to 127."""
    levels = np.clip(np.arange(256), 0, 127).astype(np.int8)
    return PixelTable(inputs=(), output=output, table=np.stack([levels] * output.channels))


def convolution(
    source: Activation, output: Activation, window: Window, weights: object
) -> Convolution:
    array = np.array(weights, dtype=np.int8)
    return Convolution(
        inputs=(source,),
        output=output,
        window=window,
        groups=source.channels // array.shape[3],
        weights=array,
        bias=np.arange(len(array), dtype=np.int32),
        factors=(QUARTER, *[ONE] * (len(array) - 1)),
    )


def every_kernel() -> IntegerNetwork:
    """A 4x4 image of two channels through each kernel, also with padding and groups."""
    pixels, first, second = (Activation(4, 4, c, 1.0, 0) for c in (2, 2, 2))
    padded, pooled, means = (Activation(4, 4, 3, 1.0, 0) for _ in range(3))
    logits = Activation(1, 1, 3, 0.5, -3)
    around = Window(3, 3, 1, 1, 1, 1, 1, 1)
    ones = np.ones((2, 3, 3, 1))
    weights = np.arange(3 * 4 * 4 * 3).reshape(3, 4, 4, 3) % 5 - 2
    head = convolution(means, logits, Window(4, 4), weights)
    return IntegerNetwork(
        (
            pixel_table(pixels),
            convolution(pixels, first, around, ones),
            Addition(inputs=(first, pixels), output=second, factors=(ONE, ONE), low=0),
            ChannelPadding(inputs=(second,), output=padded),
            MaxPool(inputs=(padded,), output=pooled, window=around),
            AveragePool(inputs=(pooled,), output=means, window=around, factor=QUARTER),
            head,
        )
    )


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.c"
    write_model(every_kernel(), path, class_names=["a", "b", "c"], metadata={"run": "1"})
    return path


def test_a_convolution_worked_by_hand(tmp_path: Path) -> None:
    """2x2 pixels, 1 2 / 3 4, stride 2, one row and column of padding before them.

    The only window has 1 at its lower right: 2 * 1 + 0 = 2, times 1/4 is 0.5, rounded to 1; the
    second channel is -5 * 1 + 1 = -4. The padding stands for 0, and is stored as 1.
    """
    source, output = Activation(2, 2, 1, 1.0, 1), Activation(1, 1, 2, 0.5, 10)
    weights = [[[[7], [7]], [[7], [2]]], [[[7], [7]], [[7], [-5]]]]
    layer = convolution(source, output, Window(2, 2, 2, 2, 1, 1), weights)
    by_zero_point = np.array([23, 16])  # The sums of the weights, times the zero point.
    layer.bias[:] -= by_zero_point.astype(np.int32)
    table = pixel_table(source)
    table.table[:] = np.clip(np.arange(256) + 1, 0, 127)
    path = tmp_path / "model.c"
    network = IntegerNetwork((table, layer))
    write_model(network, path, class_names=["a", "b"], metadata={})
    pixels = np.array([[[[1, 2], [3, 4]]]], dtype=np.uint8)
    np.testing.assert_array_equal(open_model(path, 1)(pixels), [[0.5, -2.0]])


def test_compiles_under_strict_warnings_and_runs_under_sanitisers(file: Path) -> None:
    """The same logits as from the optimised library; gcc's sanitisers end it at the first fault."""
    pixels = np.random.default_rng(0).integers(0, 8, (1, 2, 4, 4), dtype=np.uint8)
    expected = open_model(file, 1)(pixels)[0]
    values = ", ".join(map(str, pixels.ravel()))
    main = file.with_name("main.c")
    main.write_text(
        '#include "model.h"\n#include <stdio.h>\nint main(void)\n{\n'
        f"    const uint8_t pixels[] = {{{values}}};\n    int8_t logits[KD_NUM_CLASSES];\n"
        '    printf("%s", kd_class_names[kd_predict(pixels, logits)]);\n'
        "    for (int i = 0; i < KD_NUM_CLASSES; i++) {\n"
        '        printf(" %g", (double)kd_dequantise(logits[i]));\n    }\n    return 0;\n}\n'
    )
    program = file.with_name("main")
    sanitise = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    subprocess.run(["cc", *STRICT, *sanitise, file, main, "-o", program], check=True)
    printed = subprocess.run([program], check=True, capture_output=True, text=True).stdout.split()
    assert [float(value) for value in printed[1:]] == expected.tolist()
    assert printed[0] == "abc"[int(expected.argmax())]
    assert len(set(expected.tolist())) > 1


def test_every_subset_of_kernels_compiles_under_strict_warnings(tmp_path: Path) -> None:
    """A network of a table and one more layer has no unused function in its file."""
    for index, layer in enumerate(every_kernel().layers[1:]):
        path = tmp_path / f"{index}" / "model.c"
        path.parent.mkdir()
        table = pixel_table(layer.inputs[0])
        names = ["a"] * layer.output.size
        write_model(IntegerNetwork((table, layer)), path, class_names=names, metadata={})
        subprocess.run(["cc", *STRICT, "-c", path, "-o", path.with_suffix(".o")], check=True)


def test_names_and_facts_stay_what_they_are(tmp_path: Path) -> None:
    names = ['"\\', "a??/", "é1", "*/ int x;", "line\nbreak"]
    pixels, logits = Activation(1, 1, 1, 1.0, 0), Activation(1, 1, 5, 1.0, 0)
    head = convolution(pixels, logits, Window(), np.ones((5, 1, 1, 1)))
    path = tmp_path / "model.c"
    facts = {"classes": "*/ #error", "open": "/* ??/", "lines": "a\n*/ b"}
    network = IntegerNetwork((pixel_table(pixels), head))
    write_model(network, path, class_names=names, metadata=facts)
    main = tmp_path / "main.c"
    main.write_text(
        '#include "model.h"\n#include <stdio.h>\nint main(void)\n{\n'
        '    for (int i = 0; i < KD_NUM_CLASSES; i++) {\n        printf("%s|", kd_class_names[i]);'
        "\n    }\n    return 0;\n}\n"
    )
    subprocess.run(["cc", *STRICT, path, main, "-o", tmp_path / "main"], check=True)
    printed = subprocess.run([tmp_path / "main"], check=True, capture_output=True).stdout
    assert printed.decode().split("|")[:-1] == names


def test_the_header_states_shape_arena_and_facts(file: Path) -> None:
    header = file.with_name("model.h").read_text()
    stated = dict(re.findall(r"#define KD_(\w+) (\S+)", header))
    assert [stated[name] for name in ("CHANNELS", "HEIGHT", "WIDTH", "NUM_CLASSES")] == list("2443")
    assert ' * "run", "1"' in header
    assert int(stated["ARENA_BYTES"]) > 0
    assert (stated["LOGIT_SCALE"], stated["LOGIT_ZERO_POINT"]) == ("0.5f", "(-3)")
