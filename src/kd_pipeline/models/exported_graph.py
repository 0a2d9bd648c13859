"""An exported graph as a list of steps: what a file names stays a key, and never becomes code.

`torch.export.load` writes the names in a file into Python source that it runs, evaluates
expressions, and imports what trees of arguments name. Here a graph is read as data: each step is
one operator of a fixed list, its arguments are numbers, dtypes and earlier results.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kd_pipeline.errors import CheckpointError
from kd_pipeline.models.exported_operators import find_operator, is_check

_MAJOR_VERSION = 8
"""Of torch.export's schema since torch 2.6: fields are added to it, never changed."""

DTYPES = {
    1: torch.uint8,
    2: torch.int8,
    3: torch.int16,
    4: torch.int32,
    5: torch.int64,
    6: torch.float16,
    7: torch.float32,
    8: torch.float64,
    12: torch.bool,
    13: torch.bfloat16,
}
"""By their numbers in torch.export's schema; no classifier computes in the others."""
_MEMORY_FORMATS = {
    1: torch.contiguous_format,
    2: torch.channels_last,
    3: torch.channels_last_3d,
    4: torch.preserve_format,
}
_STRIDED = 7
_KEYWORD = 2


@dataclass(frozen=True)
class Name:
    """Stands for an earlier result."""

    name: str


class _ImagesDevice:
    """Stands for the device on which a graph runs, whichever it was exported on."""


@dataclass(frozen=True)
class Step:
    """One operator of a graph."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    keywords: Mapping[str, Any]
    results: tuple[str | None, ...]
    spreads: bool
    """Whether the operator returns several results."""


@dataclass(frozen=True)
class Graph:
    """A graph of one input and one output."""

    steps: tuple[Step, ...]
    last_uses: tuple[tuple[str, ...], ...]
    """Results that no step after this one needs, so that their memory goes."""
    weights: Mapping[str, str]
    """Which stored tensor each of the graph's own inputs is."""
    images: str
    image_shape: tuple[int | None, ...]
    """None where the graph leaves a size open."""
    image_dtype: torch.dtype
    logits: str
    logits_shape: tuple[int | None, ...]

    def run(self, images: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        """Compute the output.

        Args:
            images: Of the graph's own dtype.
            tensors: The stored tensors by name, on the images' device.
        """
        values: dict[str, Any] = {own: tensors[stored] for own, stored in self.weights.items()}
        values[self.images] = images
        for step, unneeded in zip(self.steps, self.last_uses, strict=True):
            arguments, keywords = (
                _filled_in(part, values, images.device) for part in (step.arguments, step.keywords)
            )
            found = step.function(*arguments, **keywords)
            results = found if step.spreads else [found]
            values |= {
                name: value
                for name, value in zip(step.results, results, strict=True)
                if name is not None
            }
            for name in unneeded:
                values.pop(name, None)
        logits: Tensor = values[self.logits]
        return logits


def _filled_in(part: Any, values: Mapping[str, Any], device: torch.device) -> Any:
    if isinstance(part, Name):
        return values[part.name]
    if isinstance(part, _ImagesDevice):
        return device
    if isinstance(part, list | tuple):
        return [_filled_in(item, values, device) for item in part]
    if isinstance(part, Mapping):
        return {key: _filled_in(item, values, device) for key, item in part.items()}
    return part


def read_graph(program: Mapping[str, Any]) -> Graph:
    """Read the graph of an exported program.

    Args:
        program: The JSON under `models/` in its archive.

    Raises:
        CheckpointError: If it holds anything but operators of the list, on one input of images and
            weights, to one output of logits.
        KeyError, TypeError, ValueError: If it is not laid out as a graph.
    """
    if (version := program["schema_version"]["major"]) != _MAJOR_VERSION:
        raise CheckpointError(
            f"an exported program must have a schema of version {_MAJOR_VERSION}, got {version}"
        )
    graph, signature = program["graph_module"]["graph"], program["graph_module"]["signature"]
    weights, images = _inputs(signature["input_specs"])
    logits = _output(signature["output_specs"])
    known = graph["tensor_values"]
    steps = [_step(node) for node in graph["nodes"] if not is_check(str(node["target"]))]
    _check_names(steps, {*weights, *images}, logits)
    metas = [known[name] for name in images]
    dtypes = [DTYPES.get(meta["dtype"]) for meta in metas]
    shapes = [_shape(meta) for meta in metas]
    if len(shapes) != 1 or len(shapes[0]) != 4 or dtypes[0] not in (torch.uint8, torch.float32):
        raise CheckpointError(
            "an exported teacher must have one input [batch, channels, height, width] of uint8 or "
            f"float32, got {shapes} of {dtypes}"
        )
    outputs = [_shape(known[name]) for name in logits]
    if len(outputs) != 1 or len(outputs[0]) != 2:
        raise CheckpointError(
            f"an exported teacher must have one output [batch, num_classes], got {outputs}"
        )
    return Graph(
        steps=tuple(steps),
        last_uses=_last_uses(steps, kept=logits[0]),
        weights=weights,
        images=images[0],
        image_shape=shapes[0],
        image_dtype=dtypes[0],
        logits=logits[0],
        logits_shape=outputs[0],
    )


def _inputs(specs: Sequence[Mapping[str, Any]]) -> tuple[dict[str, str], list[str]]:
    weights, images = {}, []
    for spec in specs:
        ((kind, content),) = spec.items()
        if kind in ("parameter", "buffer", "tensor_constant"):
            weights[_text(content["arg"]["name"])] = _text(content[f"{kind}_name"])
        elif kind == "user_input" and set(content["arg"]) == {"as_tensor"}:
            images.append(_text(content["arg"]["as_tensor"]["name"]))
        else:
            raise CheckpointError(
                "an exported teacher must have no inputs but weights and one input [batch, "
                f"channels, height, width], got {kind} {content}"
            )
    return weights, images


def _output(specs: Sequence[Mapping[str, Any]]) -> list[str]:
    names = []
    for spec in specs:
        ((kind, content),) = spec.items()
        if kind != "user_output" or set(content["arg"]) != {"as_tensor"}:
            raise CheckpointError(
                "an exported teacher must have one output [batch, num_classes] and change nothing "
                f"(export it in eval mode), got {kind} {content}"
            )
        names.append(_text(content["arg"]["as_tensor"]["name"]))
    return names


def _shape(meta: Mapping[str, Any]) -> tuple[int | None, ...]:
    return tuple(_number(size["as_int"]) if "as_int" in size else None for size in meta["sizes"])


def _step(node: Mapping[str, Any]) -> Step:
    target = _text(node["target"])
    function = find_operator(target)
    schema = getattr(function, "_schema", None)
    arguments: list[Any] = []
    keywords: dict[str, Any] = {}
    for given in node["inputs"]:
        value = _argument(given["arg"])
        if schema is None:
            if given.get("kind") == _KEYWORD:
                raise CheckpointError(f"{target} must be given no keywords, got {given['name']!r}")
            arguments.append(value)
            continue
        places = {argument.name: at for at, argument in enumerate(schema.arguments)}
        name = _text(given["name"])
        if name not in places or name in keywords or places[name] < len(arguments):
            raise CheckpointError(f"{target} must be given its own arguments, got {name!r}")
        if places[name] == len(arguments) and not schema.arguments[places[name]].kwarg_only:
            arguments.append(value)
        else:
            keywords[name] = value
    results, spreads = _results(node["outputs"])
    return Step(function, tuple(arguments), keywords, results, spreads)


def _results(outputs: Sequence[Mapping[str, Any]]) -> tuple[tuple[str | None, ...], bool]:
    if len(outputs) == 1 and set(outputs[0]) == {"as_tensors"}:
        return tuple(_text(item["name"]) for item in outputs[0]["as_tensors"]), True
    names = []
    for output in outputs:
        value = _argument(output)
        if value is not None and not isinstance(value, Name):
            raise CheckpointError(f"an exported program must name its results, got {output}")
        names.append(None if value is None else value.name)
    if not names:
        raise CheckpointError("an exported program must name its results, got none")
    return tuple(names), len(names) > 1


def _argument(argument: Mapping[str, Any]) -> Any:
    """Read an argument: a constant, a `Name`, or a list of such."""
    ((kind, value),) = argument.items()
    if kind in _READERS:
        return _READERS[kind](value)
    # Lists are their items' kind with an s; a size in a list may be a number or a name.
    if kind.removesuffix("s") in _READERS:
        return [_READERS[kind.removesuffix("s")](item) for item in value]
    raise CheckpointError(
        "the arguments in an exported program must be tensors, numbers and dtypes, got "
        f"{kind} {value!r}"
    )


def _number(value: Any) -> int:
    if not isinstance(value, int):
        raise TypeError(f"a whole number must be one, got {value!r}")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"a name must be text, got {value!r}")
    return value


def _layout(value: int) -> torch.layout:
    if value != _STRIDED:
        raise CheckpointError(f"an exported program must have dense tensors, got layout {value}")
    return torch.strided


_READERS: Mapping[str, Callable[[Any], Any]] = {
    "as_none": lambda _: None,
    "as_tensor": lambda value: Name(_text(value["name"])),
    "as_optional_tensor": _argument,
    "as_name": lambda value: Name(_text(value)),
    "as_sym_int": _argument,
    "as_sym_float": _argument,
    "as_sym_bool": _argument,
    "as_int": _number,
    "as_float": float,  # Infinity and NaN are text in JSON.
    "as_bool": bool,
    "as_string": _text,
    "as_scalar_type": lambda value: DTYPES[value],
    "as_memory_format": lambda value: _MEMORY_FORMATS[value],
    "as_layout": _layout,
    "as_device": lambda _: _ImagesDevice(),
}


def _names(part: Any) -> set[str]:
    if isinstance(part, Name):
        return {part.name}
    if isinstance(part, Mapping):
        part = list(part.values())
    return set().union(*map(_names, part)) if isinstance(part, list | tuple) else set()


def _used(step: Step) -> set[str]:
    return _names(step.arguments) | _names(step.keywords)


def _check_names(steps: Sequence[Step], given: set[str], wanted: Sequence[str]) -> None:
    known = set(given)
    for step in steps:
        if missing := _used(step) - known:
            raise CheckpointError(f"an exported program uses {sorted(missing)} before it is there")
        known |= {name for name in step.results if name is not None}
    if missing := set(wanted) - known:
        raise CheckpointError(f"an exported program must compute its output {sorted(missing)}")


def _last_uses(steps: Sequence[Step], *, kept: str) -> tuple[tuple[str, ...], ...]:
    seen = {kept}
    found = []
    for step in reversed(steps):
        new = (_used(step) | {name for name in step.results if name is not None}) - seen
        seen |= new
        found.append(tuple(sorted(new)))
    return tuple(reversed(found))
