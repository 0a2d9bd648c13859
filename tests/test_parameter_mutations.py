"""Whatever is changed in the parameters of conf/base is legal or refused by its name.

Never another exception, and never after the first node: what the settings accept is put to the
checks that come before it, for the pipeline `distill`.
"""

import re
import warnings
from collections.abc import Iterator
from copy import deepcopy
from datetime import date
from pathlib import Path
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st
from kedro.config import OmegaConfigLoader
from kedro.io import DataCatalog, MemoryDataset
from kedro.pipeline import Pipeline
from kedro.validation.type_extractor import TypeExtractor

from kd_pipeline.config import Params
from kd_pipeline.errors import ParameterError, SettingsError
from kd_pipeline.hooks.guards import check_settings
from kd_pipeline.hooks.parameters import check_given, check_parameters
from kd_pipeline.pipeline_registry import register_pipelines
from kd_pipeline.settings import CONFIG_LOADER_ARGS

CONF = Path(__file__).parents[1] / "conf"
Names = tuple[str | int, ...]
Mutation = tuple[Any, ...]


def loaded() -> tuple[dict[str, Any], dict[str, type[Params]], Pipeline]:
    """The base configuration, the settings of its blocks, and the pipeline `distill`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        base = OmegaConfigLoader(str(CONF), env="base", **CONFIG_LOADER_ARGS)["parameters"]
        pipelines = register_pipelines()
        kinds = TypeExtractor(pipelines).extract_types_from_pipelines()
    return base, kinds, pipelines["distill"]


BASE, KINDS, DISTILL = loaded()


def paths(value: Any, names: Names = ()) -> Iterator[Names]:
    """Of every block, setting and entry of a list."""
    inside = value.items() if isinstance(value, dict) else enumerate(value)
    for name, inner in inside:
        yield (*names, name)
        if isinstance(inner, dict | list):
            yield from paths(inner, (*names, name))


PATHS = sorted(paths(BASE), key=str)
SETTINGS = [names for names in PATHS if not isinstance(names[-1], int)]

numbers = st.sampled_from([-1, 0, 1, 2, 10**11, 10**400, 0.5, -0.5, 1e-9, 1e9, 1e308])
numbers |= st.sampled_from([float("inf"), float("-inf"), float("nan")])
texts = st.sampled_from(["", "x", "1e3", "null", "0", "mlp", "kl", "int8", "../..", "é" * 300])
plain = st.none() | st.booleans() | numbers | texts | st.just(date(2026, 1, 1))
names = st.sampled_from(sorted({str(one[-1]) for one in SETTINGS} | {"kind", "x", "seeed", "a.b"}))
absurd = st.recursive(
    plain,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names | st.integers(0, 3), inner),
    max_leaves=4,
)
entries = st.sampled_from(
    [
        {"name": name} for name in ("shift", "mixup", "blur", "twirl", "rand_augment", "cutout")
    ] + [{"kind": kind} for kind in ("digits", "torchvision", "onnx", "logits", "module", "x")]
)  # fmt: skip
values = absurd | entries | st.lists(entries | absurd, max_size=2)
mutations = st.one_of(
    st.tuples(st.just("drop"), st.sampled_from(SETTINGS)),
    st.tuples(st.just("rename"), st.sampled_from(SETTINGS), names),
    st.tuples(st.just("set"), st.sampled_from(PATHS), values),
    st.tuples(st.just("insert"), st.sampled_from(SETTINGS), names | st.integers(0, 3), values),
    st.tuples(st.just("swap"), st.sampled_from(SETTINGS), st.sampled_from(SETTINGS)),
)


def parent_of(base: Any, names: Names) -> Any:
    for name in names[:-1]:
        base = base[name]
    return base


def mutate(base: dict[str, Any], mutation: Mutation) -> None:
    """Change the parameters in place."""
    kind, names, *rest = mutation
    block, last = parent_of(base, names), names[-1]
    if kind == "drop":
        del block[last]
    elif kind == "rename":
        block[rest[0]] = block.pop(last)
    elif kind == "set":
        block[last] = rest[0]
    elif kind == "insert":
        block[rest[0]] = rest[1]
    else:
        other, its_last = parent_of(base, rest[0]), rest[0][-1]
        block[last], other[its_last] = deepcopy(other[its_last]), deepcopy(block[last])


def touched(mutation: Mutation) -> set[str]:
    """Names of the blocks that a mutation changes."""
    kind, names, *rest = mutation
    found = {str(names[0])}
    if kind == "swap":
        found.add(str(rest[0][0]))
    if kind in ("rename", "insert") and len(names) == 1:
        found.add(str(rest[0]))
    return found


def refusal(base: dict[str, Any]) -> str | None:
    """The message before the first node; None where the parameters are accepted."""
    try:
        check_parameters(base, KINDS)
        catalog = DataCatalog({f"params:{k}": MemoryDataset(v) for k, v in base.items()})
        check_given(DISTILL, catalog)
        check_settings(DISTILL, catalog)
    except (SettingsError, ParameterError) as error:
        return str(error)
    return None


@given(mutation=mutations)
@example(mutation=("set", ("views", "transforms"), [{"name": "blur", "kernel_size": 2}]))
@example(mutation=("set", ("student_kd", "soft_loss"), {"name": "kl", "x": 1}))
@settings(max_examples=300, deadline=None)
def test_any_mutation_is_accepted_or_refused_by_name(mutation: Mutation) -> None:
    changed = deepcopy(BASE)
    mutate(changed, mutation)
    message = refusal(changed)
    if message is None:
        return
    blocks = touched(mutation)
    for line in message.splitlines():
        found = re.match(r"`([^`]+)`", line)
        assert found, line
        assert "Input should" not in line
        # Rules between blocks name one of them.
        assert any(block in line for block in blocks), (line, blocks)


def test_the_base_itself_is_accepted() -> None:
    assert refusal(deepcopy(BASE)) is None
