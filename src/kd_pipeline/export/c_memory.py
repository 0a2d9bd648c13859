"""Where each activation lies in the one static arena of the C target."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kd_pipeline.export.c_layers import Activation, Addition, Convolution, Layer


@dataclass(frozen=True)
class Buffer:
    """So many bytes, in use from one layer to another, both included."""

    size: int
    first: int
    last: int


@dataclass(frozen=True)
class Arena:
    """Offsets of what lies in the arena; the logits do not, they go to the caller."""

    size: int
    activations: Mapping[Activation, int]
    patches: Mapping[Layer, int]
    """Of convolutions that copy the input under each window."""


def plan_arena(layers: Sequence[Layer]) -> Arena:
    """Assign offsets by lifetime; an addition overwrites an input that no later layer reads."""
    last = {source: step for step, layer in enumerate(layers) for source in layer.inputs}
    owners: dict[Activation, Activation] = {}
    spans: dict[Activation | Layer, Buffer] = {}
    for step, layer in enumerate(layers[:-1]):
        output = layer.output
        dying = [s for s in layer.inputs if last[s] == step] if isinstance(layer, Addition) else []
        owner = owners[output] = owners[dying[0]] if dying else output
        first = spans[owner].first if dying else step
        spans[owner] = Buffer(output.size, first, last.get(output, step))
    patches = [(step, c) for step, c in enumerate(layers) if isinstance(c, Convolution)]
    spans |= {c: Buffer(c.patch_size, step, step) for step, c in patches if c.patch_size}
    offsets = dict(zip(spans, place(list(spans.values())), strict=True))
    return Arena(
        size=max((offsets[key] + span.size for key, span in spans.items()), default=1),
        activations={activation: offsets[owner] for activation, owner in owners.items()},
        patches={layer: offsets[layer] for _, layer in patches if layer in offsets},
    )


def place(buffers: Sequence[Buffer]) -> list[int]:
    """Offsets at which no two buffers in use at once overlap: the largest first, each lowest."""
    offsets: dict[int, int] = {}
    for index in sorted(range(len(buffers)), key=lambda i: -buffers[i].size):
        buffer = buffers[index]
        offset = 0
        for other, start in sorted(offsets.items(), key=lambda item: item[1]):
            placed = buffers[other]
            is_apart = buffer.last < placed.first or placed.last < buffer.first
            if not is_apart and offset + buffer.size > start:
                offset = max(offset, start + placed.size)
        offsets[index] = offset
    return [offsets[index] for index in range(len(buffers))]
