"""The C text of an integer network: model.c and its header."""

import json
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from kd_pipeline.export.c_kernels import FUNCTIONS, kernels_of
from kd_pipeline.export.c_layers import (
    Activation,
    Addition,
    AveragePool,
    Convolution,
    IntegerNetwork,
    Layer,
    MaxPool,
    PixelTable,
    Window,
)
from kd_pipeline.export.c_memory import Arena, plan_arena

_HEADER = """\
/* An int8 image classifier without a runtime; model.c implements it in C99, integers only.
{facts}
 */
#ifndef KD_MODEL_H
#define KD_MODEL_H

#include <stdint.h>

#define KD_CHANNELS {channels}
#define KD_HEIGHT {height}
#define KD_WIDTH {width}
#define KD_NUM_CLASSES {num_classes}
#define KD_ARENA_BYTES {arena} /* static RAM */
#define KD_LOGIT_SCALE {scale}f
#define KD_LOGIT_ZERO_POINT ({zero_point})

#ifdef __cplusplus
extern "C" {{
#endif

extern const char *const kd_class_names[KD_NUM_CLASSES];

/* Classify one image of KD_CHANNELS * KD_HEIGHT * KD_WIDTH pixels, [channels][height][width].
 * Fills KD_NUM_CLASSES int8 logits and returns the class of the greatest, the first of equals.
 * All calls share one arena: no two may run at the same time. */
int kd_predict(const uint8_t *pixels, int8_t *logits);

/* The float logit that an int8 one stands for. */
static inline float kd_dequantise(int8_t logit)
{{
    return KD_LOGIT_SCALE * (float)(logit - KD_LOGIT_ZERO_POINT);
}}

#ifdef __cplusplus
}}
#endif

#endif
"""

_SOURCE = """\
/* See model.h. Weights are int8 with a scale for each output channel, [out][height][width][in];
 * sums are int32; products with fixed-point factors are rounded to nearest, halves up. */
#include "model.h"

#include <stddef.h>
#include <string.h>

{kernels}
{constants}
static int8_t arena[KD_ARENA_BYTES];

const char *const kd_class_names[KD_NUM_CLASSES] = {{
{class_names}
}};

int kd_predict(const uint8_t *pixels, int8_t *logits)
{{
{calls}
    int best = 0;
    for (int i = 1; i < KD_NUM_CLASSES; i++) {{
        best = logits[i] > logits[best] ? i : best;
    }}
    return best;
}}
"""


def write_model(
    network: IntegerNetwork,
    path: Path,
    *,
    class_names: Sequence[str],
    metadata: Mapping[str, str],
) -> None:
    """Write model.c and, beside it, model.h.

    Args:
        network: Its layers.
        path: Of model.c, in an existing folder.
        class_names: In the order of the logits.
        metadata: Facts for the comment at the top of model.h.
    """
    arena = plan_arena(network.layers)
    header = _header_text(network, arena, class_names=class_names, metadata=metadata)
    path.with_name("model.h").write_text(header)
    path.write_text(_source_text(network, arena, class_names=class_names))


def _header_text(
    network: IntegerNetwork,
    arena: Arena,
    *,
    class_names: Sequence[str],
    metadata: Mapping[str, str],
) -> str:
    channels, height, width = network.input_shape
    # As JSON each fact is one line of ASCII; without asterisks none ends the comment.
    facts = [json.dumps(fact).replace("*", "\\u002a") for fact in metadata.items()]
    return _HEADER.format(
        facts="\n".join(f" * {fact[1:-1]}" for fact in facts),
        channels=channels,
        height=height,
        width=width,
        num_classes=len(class_names),
        arena=arena.size,
        scale=float(np.float32(network.logits.scale)),
        zero_point=network.logits.zero_point,
    )


def _source_text(network: IntegerNetwork, arena: Arena, *, class_names: Sequence[str]) -> str:
    steps = list(enumerate(network.layers))
    return _SOURCE.format(
        kernels=kernels_of({type(layer).__name__ for layer in network.layers}),
        constants="\n".join(filter(None, (_constants(step, layer) for step, layer in steps))),
        class_names="\n".join(f"    {_string(name)}," for name in class_names),
        calls="\n".join(_call(step, layer, arena) for step, layer in steps),
    )


def _constants(step: int, layer: Layer) -> str:
    """The constant data of one layer."""
    if isinstance(layer, PixelTable):
        return _array(f"int8_t table_{step}", layer.table)
    if isinstance(layer, Addition):
        zeros = [source.zero_point for source in layer.inputs]
        (left, right), output = layer.factors, layer.output
        values = [output.size, zeros[0], left.multiplier, zeros[1], right.multiplier, left.shift]
        return _struct(
            f"addition layer_{step}", [*values, output.zero_point, layer.low, layer.high]
        )
    window = layer.window if isinstance(layer, Convolution | MaxPool | AveragePool) else Window()
    groups = layer.groups if isinstance(layer, Convolution) else 1
    values = [*layer.inputs[0].shape, *layer.output.shape, window.height, window.width]
    values += [window.stride_y, window.stride_x, window.top, window.left, groups]
    values += [layer.inputs[0].zero_point, layer.output.zero_point, layer.low, layer.high]
    texts = [_struct(f"layer layer_{step}", values)]
    if isinstance(layer, Convolution):
        multipliers = [factor.multiplier for factor in layer.factors]
        texts += [
            _array(f"int8_t weights_{step}", layer.weights),
            _array(f"int32_t bias_{step}", layer.bias),
            _array(f"int32_t multipliers_{step}", np.array(multipliers)),
            _array(f"uint8_t shifts_{step}", np.array([factor.shift for factor in layer.factors])),
        ]
    return "".join(texts)


def _call(step: int, layer: Layer, arena: Arena) -> str:
    """The call of one layer's kernel."""

    def place(activation: Activation) -> str:
        offset = arena.activations.get(activation)
        return "logits" if offset is None else f"arena + {offset}"

    name, buffers = f"&layer_{step}", [place(source) for source in layer.inputs]
    buffers.append(place(layer.output))
    if isinstance(layer, PixelTable):
        arguments = [f"table_{step}", "pixels", *buffers]
    elif isinstance(layer, Convolution):
        data = [f"{kind}_{step}" for kind in ("weights", "bias", "multipliers", "shifts")]
        patch = arena.patches.get(layer)
        arguments = [name, *data, *buffers, "NULL" if patch is None else f"arena + {patch}"]
    elif isinstance(layer, AveragePool):
        factor = layer.factor
        arguments = [name, str(factor.multiplier), str(factor.shift), *buffers]
    else:
        arguments = [name, *buffers]
    return f"    {FUNCTIONS[type(layer).__name__]}({', '.join(arguments)});"


def _array(name: str, values: np.ndarray) -> str:
    lines = textwrap.wrap(", ".join(map(str, values.ravel().tolist())), width=96)
    body = "\n".join(f"    {line}" for line in lines)
    return f"static const {name}[{values.size}] = {{\n{body}\n}};\n"


def _struct(name: str, values: Sequence[int]) -> str:
    return f"static const {name} = {{{', '.join(map(str, values))}}};\n"


def _string(text: str) -> str:
    """A C string of UTF-8; octal escapes take three digits at most, so none runs on."""
    plain = set(range(32, 127)) - set(b'"\\?')  # `?` may begin a trigraph.
    return '"' + "".join(chr(b) if b in plain else f"\\{b:03o}" for b in text.encode()) + '"'
