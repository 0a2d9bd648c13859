"""Parameters are checked whole before a run, and each mistake is one line with its dotted name."""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from textwrap import shorten
from typing import Any, get_args

from kedro.io import CatalogProtocol
from kedro.pipeline import Pipeline
from pydantic import BaseModel, ValidationError

from kd_pipeline.config import Params
from kd_pipeline.errors import SettingsError

_BLOCK = dict.fromkeys(("model_type", "model_attributes_type", "dict_type"), "be a block")
_OWN_WORDS = {**_BLOCK, "tuple_type": "be a list"}
"""Of YAML, where pydantic's are of Python."""
_UNNAMED = ("missing", "union_tag_not_found", "union_tag_invalid")
"""Mistakes of a setting that is not there, or of one that pydantic does not name."""
_NUM_SUGGESTED = 3
"""A name that belongs to more places is answered with what is legal where it stands."""

_Mistake = tuple[str, str]
"""The name as in YAML, and the text that follows it."""


def typed_blocks() -> dict[str, type[Params]]:
    """The settings of each block of parameters that some stage reads."""
    from kedro.framework.project import pipelines
    from kedro.validation.type_extractor import TypeExtractor

    return TypeExtractor(dict(pipelines)).extract_types_from_pipelines()


def check_parameters(given: Mapping[str, Any], kinds: Mapping[str, type[Params]]) -> None:
    """Refuse parameters that are no settings or break their rules.

    Kedro would ignore a block that no stage reads, and a typing error with it; what it refuses it
    shows as pydantic's report.

    Args:
        given: All blocks, as loaded.
        kinds: The settings of each block.

    Raises:
        SettingsError: With a line for each mistake.
    """
    errors = {block: _error(kind, given[block]) for block, kind in kinds.items() if block in given}
    # After the validation, which imports the transforms that are asked for, and their settings.
    legal = {*kinds, *(name for block, kind in kinds.items() for name in _names(kind, block))}
    mistakes = [(str(name), _unknown(str(name), legal)) for name in given if name not in kinds]
    for block, error in errors.items():
        if error is not None:
            mistakes += _mistakes(error, block, given[block], legal)
    if mistakes:
        raise SettingsError("\n".join(_lines(mistakes)))


def _error(kind: type[Params], given: Any) -> ValidationError | None:
    try:
        kind.model_validate(given)
    except ValidationError as error:
        return error
    return None


def check_given(pipeline: Pipeline, catalog: CatalogProtocol[Any, Any]) -> None:
    """Refuse parameters without a block that a pipeline reads.

    Raises:
        SettingsError: Naming the blocks.
    """
    blocks = sorted(name for name in pipeline.inputs() if name.startswith("params:"))
    if missing := [name.removeprefix("params:") for name in blocks if name not in catalog]:
        raise SettingsError("\n".join(f"`{name}` must be given" for name in missing))


def _names(kind: type[BaseModel], prefix: str) -> Iterator[str]:
    """Dotted names of all settings of a block, without the positions in lists."""
    for name, field in kind.model_fields.items():
        yield f"{prefix}.{name}"
        for inner in _models(field.annotation):
            yield from _names(inner, f"{prefix}.{name}")


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
        # A transform or a soft loss, chosen by name.
        for kind in annotation.__subclasses__():
            yield from _models(kind)
    for argument in get_args(annotation):
        yield from _models(argument)


def _lines(mistakes: Sequence[_Mistake]) -> list[str]:
    """A line per rule that is broken.

    Of a value that may have several types, pydantic reports each; and one value may be that of
    several settings: YAML's `${student_kd.temperature}`.
    """
    rules: dict[str, list[str]] = {}
    for name, text in mistakes:
        rules.setdefault(name, []).append(text)
    names: dict[str, list[str]] = {}
    for name, texts in rules.items():
        names.setdefault(" or ".join(dict.fromkeys(texts)), []).append(f"`{name}`")
    return [f"{', '.join(names)} {text}" for text, names in names.items()]


def _mistakes(
    error: ValidationError, block: str, given: Any, legal: set[str]
) -> Iterator[_Mistake]:
    for one in error.errors(include_url=False):
        context, kind = one.get("ctx", {}), one["type"]
        name, value, above = _locate(block, given, one["loc"], missing=kind == "missing")
        cause = context.get("error")
        if kind == "extra_forbidden":
            yield name, _unknown(name, legal, above)
        elif cause is not None:
            yield _rule(name, str(cause))
        elif kind in _UNNAMED:
            tag = "" if kind == "missing" else f".{context['discriminator'].strip(chr(39))}"
            tags = context.get("expected_tags")
            yield name + tag, "must be given" + (f" as one of {tags}" if tags else "")
        else:
            rule = _OWN_WORDS.get(kind) or re.sub(r"^.*?should ", "", one["msg"])
            yield name, f"must {rule}, got {shorten(repr(value), 80, placeholder='...')}"


def _locate(
    block: str, given: Any, location: Sequence[int | str], *, missing: bool
) -> tuple[str, Any, Any]:
    """The name of a setting as in YAML, its value, and the block around it.

    Pydantic's location also names the alternatives of a union, which YAML does not have.
    """
    name, value, above = block, given, None
    for part in location:
        if isinstance(value, Mapping) and part in value:
            name, value, above = f"{name}.{part}", value[part], value
        elif isinstance(value, list | tuple) and isinstance(part, int) and part < len(value):
            name, value, above = f"{name}[{part}]", value[part], value
    return (f"{name}.{location[-1]}", None, value) if missing else (name, value, above)


def _plain(name: str) -> str:
    return re.sub(r"\[\d+\]", "", name)


def _unknown(name: str, legal: set[str], above: Any = None) -> str:
    """The text for a name that is no setting: the nearest one, or where it belongs."""
    plain, text = _plain(name), "is not a setting"
    if plain in legal:
        kind = above.get("kind", above.get("name")) if isinstance(above, Mapping) else None
        return f"{text} of {kind}"
    parent, _, last = plain.rpartition(".")
    here = [one.rpartition(".")[2] for one in legal if one.rpartition(".")[0] == parent]
    above_it = name.rpartition(".")[0]
    near = [f"{above_it}.{one}".lstrip(".") for one in difflib.get_close_matches(last, here, n=1)]
    same = sorted(one for one in legal if one.endswith(f".{last}"))
    in_block = [one for one in same if one.startswith(f"{plain.partition('.')[0]}.")]
    alone = same if len(same) == 1 else []
    meant = next((m for m in (in_block, alone, near, same) if 1 <= len(m) <= _NUM_SUGGESTED), None)
    if meant is None:
        return f"{text}; legal here: {', '.join(sorted(here))}"
    return f"{text}; did you mean {' or '.join(f'`{one}`' for one in meant)}?"


def _rule(name: str, text: str) -> _Mistake:
    """A rule of our own: "`name` must ..." with a name inside the block, or other words."""
    if found := re.match(r"`([\w.]+)` (must .*)", text, flags=re.DOTALL):
        inner = found[1]
        return (name if name.endswith(f".{inner}") else f"{name}.{inner}"), found[2]
    return name, text if text.startswith("must ") else f"breaks a rule: {text}"
