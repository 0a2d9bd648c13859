"""Wiring: the design's table of stages, typed parameters, a catalog for every data set, presets."""

import re
import shutil
import warnings
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import yaml
from kedro.config import OmegaConfigLoader
from kedro.io import CatalogConfigResolver
from kedro.pipeline import Pipeline
from kedro.pipeline.node import Node
from kedro.validation.parameter_validator import ParameterValidator
from pydantic import BaseModel

from kd_pipeline.pipeline_registry import ARMS, register_pipelines
from kd_pipeline.pipelines.chain.hop_list import hop_names
from kd_pipeline.settings import CONFIG_LOADER_ARGS
from kd_pipeline.training.block_settings import ArmParams, twins_of

CONF = Path(__file__).parents[1] / "conf"
PRESETS = sorted(path.name for path in CONF.iterdir() if path.is_dir() and path.name != "local")
LAYERS = ("raw", "primary", "teacher", "soft targets", "student", "reporting")
FIGURES = {"accuracy_figure", "reliability_figure", "confusion_figure", "class_gain_figure"}
SOFT_TARGET_FIGURES = {f"soft_target_{what}_figure" for what in ("entropy", "confidence", "grid")}
WITH_TEACHER = {arm for arm, source in ARMS.items() if source == "cache"}

SOFT_TARGET_TABLES = ("soft_target_summary", "soft_target_confusions")
HOPS = hop_names()
TWINS = tuple(twins_of(len(HOPS)))

# The design's table, section 2: what each registered stage takes and gives.
STAGES: dict[str, tuple[set[str], set[str]]] = {
    "data_ingest": (set(), {"images", "examples", "rejected_images"}),
    "transfer_split": ({"images", "examples"}, {"splits", "split_summary"}),
    "teacher_training": (
        {"images", "examples", "splits"},
        {"teacher.checkpoints", "teacher.history", "teacher.card"},
    ),
    "soft_target_caching": (
        {"teacher.checkpoints", "images", "splits", "examples"},
        {"soft_targets", "soft_target_summary", "soft_target_confusions"} | SOFT_TARGET_FIGURES,
    ),
    "student_distillation": (
        {"images", "examples", "splits", "soft_targets", "teacher.card"},
        {f"{arm}.{what}" for arm in ARMS for what in ("checkpoints", "history")},
    ),
    "evaluation": (
        {"images", "examples", "splits", "teacher.checkpoints"}
        | {f"{arm}.checkpoints" for arm in ARMS},
        {"predictions", "metrics", "comparison", "report"} | FIGURES,
    ),
}


# Registered as stages, and no part of `distill`.
BESIDE_DISTILL: dict[str, tuple[set[str], set[str]]] = {
    "verify_soft_targets": (
        {"teacher.checkpoints", "images", "splits", "soft_targets"},
        {"soft_target_verification"},
    ),
    "chain": (
        {"images", "examples", "splits", "teacher.checkpoints", "teacher.card"},
        {f"{hop}.{what}" for hop in HOPS for what in ("soft_targets", "card", *SOFT_TARGET_TABLES)}
        | {f"{role}.{what}" for role in (*HOPS, *TWINS) for what in ("checkpoints", "history")}
        | {"hop_predictions", "hop_metrics", "hop_table", "hop_comparison", "hop_report"},
    ),
}
# Registered with the stages up to the teacher, without which it would be of no use.
FROM_THE_BEGINNING = ("data_ingest", "transfer_split", "teacher_training")
DATA_STAGES = STAGES | BESIDE_DISTILL


@pytest.fixture(scope="module")
def pipelines() -> dict[str, Pipeline]:
    return registered()


def registered() -> dict[str, Pipeline]:
    with warnings.catch_warnings():
        # Kedro warns of the dots in `teacher.checkpoints` when it copies a node.
        warnings.filterwarnings("ignore", message="One or more dataset names contain")
        return register_pipelines()


def all_nodes() -> list[Node]:
    return everything(registered()).nodes


def everything(pipelines: dict[str, Pipeline]) -> Pipeline:
    """All stages together."""
    return sum((pipelines[stage] for stage in BESIDE_DISTILL), pipelines["distill"])


def data_of(names: set[str]) -> set[str]:
    """Data sets that cross between nodes: neither parameters nor what resumes a killed run."""
    resumes = (".training_states", "soft_target_parts")
    return {n for n in names if not n.startswith("params:") and not n.endswith(resumes)}


def load(env: str) -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="register_new_resolver")
        loader = OmegaConfigLoader(str(CONF), env=env, **CONFIG_LOADER_ARGS)
        parameters: dict[str, Any] = loader["parameters"]
    return parameters


def catalog_config() -> dict[str, Any]:
    entries: dict[str, Any] = {}
    for path in CONF.glob("base/catalog*.yml"):
        entries |= yaml.safe_load(path.read_text(encoding="utf-8"))
    return {name: entry for name, entry in entries.items() if not name.startswith("_")}


def test_the_runs_that_a_person_types_are_registered(pipelines: dict[str, Pipeline]) -> None:
    assert set(pipelines) == {"__default__", "distill", "distill_live", *DATA_STAGES}
    assert pipelines["__default__"] == pipelines["distill"]


@pytest.mark.parametrize("stage", DATA_STAGES)
def test_a_stage_takes_and_gives_what_the_design_says(
    stage: str, pipelines: dict[str, Pipeline]
) -> None:
    takes, gives = DATA_STAGES[stage]
    pipeline = pipelines[stage]
    if stage == "chain":
        pipeline = pipeline - sum((pipelines[name] for name in FROM_THE_BEGINNING), Pipeline([]))
    assert data_of(pipeline.inputs()) == takes
    assert data_of(pipeline.all_outputs()) == gives


def test_distill_is_all_stages_and_starts_from_nothing(pipelines: dict[str, Pipeline]) -> None:
    distill = pipelines["distill"]
    assert {node.name for node in distill.nodes} == {
        node.name for stage in STAGES for node in pipelines[stage].nodes
    }
    assert data_of(distill.inputs()) == set()


def test_no_student_opens_the_teacher(pipelines: dict[str, Pipeline]) -> None:
    for node in pipelines["student_distillation"].nodes:
        assert "teacher.checkpoints" not in node.inputs
        takes_soft_targets = {"soft_targets", "teacher.card"} <= set(node.inputs)
        assert takes_soft_targets == (node.namespace in WITH_TEACHER)


def test_all_arms_share_all_but_their_own_block(pipelines: dict[str, Pipeline]) -> None:
    """The design's ninth mistake: hyper-parameters of the arms that differ unseen."""
    of_arm = {
        node.namespace: {n for n in node.inputs if n.startswith("params:")}
        for node in pipelines["student_distillation"].nodes
    }
    shared = {"params:student", "params:views", "params:soft_targets"}
    assert of_arm == {arm: shared | {f"params:{arm}"} for arm in ARMS}
    shared_knobs = {
        "seed",
        "model",
        "training",
        "optimiser",
        "schedule",
        "num_epochs",
        "batch_size",
    }
    assert not shared_knobs & set(ArmParams.model_fields)


@pytest.mark.parametrize("node", all_nodes(), ids=lambda node: node.name)
def test_every_parameter_is_typed_by_a_model_that_kedro_can_resolve(node: Node) -> None:
    """Where a hint cannot be resolved or is no pydantic model, Kedro validates nothing, unsaid."""
    hints = get_type_hints(node.func)
    bound = node._inputs
    assert isinstance(bound, dict), "inputs are wired by name, so that no order can be got wrong"
    for argument, dataset in bound.items():
        if dataset.startswith("params:"):
            assert issubclass(hints[argument], BaseModel), argument
            assert hints[argument].model_config["extra"] == "forbid"
            assert hints[argument].model_config["frozen"]


def test_kedro_finds_every_block_that_conf_sets(pipelines: dict[str, Pipeline]) -> None:
    typed = ParameterValidator(pipelines).type_extractor.extract_types_from_pipelines()
    assert set(typed) == set(load("base"))


def test_node_names_are_unique_and_tell_what_runs(pipelines: dict[str, Pipeline]) -> None:
    nodes = everything(pipelines).nodes
    assert len({node.name for node in nodes}) == len(nodes)
    for node in nodes:
        short = node.name.removeprefix(f"{node.namespace}.")
        assert re.fullmatch(r"[a-z_]+", short)
        if short not in ("train_student", "ingest"):
            assert short == node.func.__name__


def test_every_data_set_has_a_catalog_entry_with_a_layer(pipelines: dict[str, Pipeline]) -> None:
    config = catalog_config()
    resolver = CatalogConfigResolver(config)
    data = {n for n in everything(pipelines).datasets() if not n.startswith("params:")}
    for name in data:
        entry = config.get(name) or resolver.resolve_pattern(name)
        assert entry, f"{name} would live in memory only"
        assert entry["metadata"]["kedro-viz"]["layer"] in LAYERS, name
        assert str(entry["filepath"]).startswith("data/0"), name
    unused = {name for name in config if "{" not in name} - data
    assert unused == set()


def test_no_two_data_sets_share_a_file(pipelines: dict[str, Pipeline]) -> None:
    config = catalog_config()
    resolver = CatalogConfigResolver(config)
    data = sorted(n for n in everything(pipelines).datasets() if not n.startswith("params:"))
    files = [(config.get(n) or resolver.resolve_pattern(n))["filepath"] for n in data]
    assert len(set(files)) == len(files)


def test_arrays_in_cells_are_not_previewed() -> None:
    """A parquet file with array cells kills `kedro viz build --include-previews`."""
    assert catalog_config()["soft_targets"]["metadata"]["kedro-viz"]["preview"] is False


@pytest.mark.parametrize("env", PRESETS)
def test_every_preset_is_valid(env: str, pipelines: dict[str, Pipeline]) -> None:
    validated = ParameterValidator(pipelines).validate_raw_params(load(env))
    assert all(isinstance(block, BaseModel) for block in validated.values())


@pytest.mark.parametrize("env", PRESETS)
def test_a_preset_sets_only_blocks_that_base_has(env: str) -> None:
    """Kedro skips a block that no node asks for: a misspelt name would be ignored unsaid."""
    assert set(load(env)) == set(load("base"))


@pytest.mark.parametrize("env", PRESETS)
def test_the_seed_in_globals_reaches_every_stage(env: str, tmp_path: Path) -> None:
    """A preset replaces whole blocks: one that leaves `seed` out would silently train on 0."""
    shutil.copytree(CONF, tmp_path / "conf")
    (tmp_path / "conf/base/globals.yml").write_text("seed: 7\ndevice: cpu\n")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="register_new_resolver")
        loader = OmegaConfigLoader(str(tmp_path / "conf"), env=env, **CONFIG_LOADER_ARGS)
        validated = ParameterValidator(registered()).validate_raw_params(loader["parameters"])
    seeds = {name: block.seed for name, block in validated.items() if hasattr(block, "seed")}
    assert seeds == dict.fromkeys(seeds, 7)


def test_own_images_take_under_ten_lines() -> None:
    lines = (CONF / "image_folder/parameters_image_folder.yml").read_text().splitlines()
    assert len([line for line in lines if line.split("#")[0].strip()]) < 10


def test_the_environment_names_the_roots_of_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MNIST_ROOT", "/somewhere/mnist")
    assert load("mnist")["data_ingest"]["source"]["root"] == "/somewhere/mnist"
    monkeypatch.delenv("MNIST_ROOT")
    assert load("mnist")["data_ingest"]["source"]["root"] == "data/01_raw/mnist"
