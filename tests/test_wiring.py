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

from kd_pipeline.config import Params
from kd_pipeline.errors import ParameterError
from kd_pipeline.pipeline_registry import (
    BORN_AGAIN,
    COMPARE_LOSSES,
    DISTILL,
    DISTILL_CONTROLS,
    DISTILL_LIVE,
    DISTILL_PAIR,
    TEACHER_ASSISTANT,
    register_pipelines,
)
from kd_pipeline.pipelines import evaluation
from kd_pipeline.pipelines.student_distillation import Student, teaching_students
from kd_pipeline.settings import CONFIG_LOADER_ARGS
from kd_pipeline.training.settings import OF_TEACHING_STUDENTS, ArmParams

CONF = Path(__file__).parents[1] / "conf"
# A preset that a sweep has written is its user's: it has that run's seeds as numbers.
PRESETS = sorted(
    path.name
    for path in CONF.iterdir()
    if path.is_dir() and path.name != "local" and not path.name.startswith("sweep_best")
)
LAYERS = ("raw", "primary", "teacher", "soft targets", "student", "reporting", "export")
FIGURES = {"accuracy_figure", "reliability_figure", "confusion_figure", "class_gain_figure"}
CACHE = {"soft_targets", "soft_target_summary", "soft_target_confusions"}
CACHE |= {f"soft_target_{what}_figure" for what in ("entropy", "confidence", "grid")}
EXPORTS = {
    f"export_{what}"
    for what in ("predictions", "metrics", "comparison", "figure", "report", "report_page")
}
REPORT = {"predictions", "metrics", "comparison", "report", "report_page"} | FIGURES

PARAMETERS = ("params:", "parameters")
SWEEP = {f"sweep_{what}" for what in ("trials", "best_values", "preset")}
SWEEP |= {f"sweep_{what}_figure" for what in ("history", "importance", "slice")}

STUDENTS: dict[str, tuple[Student, ...]] = {
    "distill": DISTILL,
    "distill_controls": DISTILL_CONTROLS,
    "compare_losses": COMPARE_LOSSES,
    "distill_pair": DISTILL_PAIR,
    "distill_live": DISTILL_LIVE,
    "teacher_assistant": TEACHER_ASSISTANT,
    "born_again": BORN_AGAIN,
}
ARMS = [student.name for student in DISTILL]

# The design's table, section 2: what each registered stage takes and gives.
STAGES: dict[str, tuple[set[str], set[str]]] = {
    "data_ingest": (set(), {"images", "examples", "rejected_images"}),
    "transfer_split": ({"images", "examples"}, {"splits", "split_summary"}),
    "teacher_training": (
        {"images", "examples", "splits"},
        {"teacher.checkpoints", "teacher.history", "teacher.card"},
    ),
    "soft_target_caching": ({"teacher.checkpoints", "images", "splits", "examples"}, CACHE),
    "student_distillation": (
        {"images", "examples", "splits", "soft_targets", "teacher.card"},
        {f"{arm}.{what}" for arm in ARMS for what in ("checkpoints", "history")},
    ),
    "evaluation": (
        {"images", "examples", "splits", "teacher.checkpoints"}
        | {f"{arm}.checkpoints" for arm in ARMS},
        REPORT,
    ),
    "model_export": (
        {"images", "examples", "splits"},
        {"exported_models"} | EXPORTS,
    ),
    "verify_soft_targets": (
        {"teacher.checkpoints", "images", "examples", "splits", "soft_targets"},
        {"soft_target_verification"},
    ),
    "sweep": (
        {"images", "examples", "splits", "soft_targets", "teacher.card"},
        {f"{arm.name}.search" for arm in (*DISTILL, *COMPARE_LOSSES)} | SWEEP,
    ),
    "compare_groups": (
        set(),
        {"past_groups", "group_comparison"}
        | {f"group_comparison_{what}" for what in ("table", "report", "page")},
    ),
}
# Registered as stages, and no part of `distill`.
BESIDE_DISTILL = ("verify_soft_targets", "sweep", "compare_groups")


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
    """All pipelines together; `evaluate_models` of one of them."""
    nodes = {node.name: node for pipeline in pipelines.values() for node in pipeline.nodes}
    return Pipeline(nodes.values())


def data_of(names: set[str]) -> set[str]:
    """Data sets that cross between nodes: no parameters, resumed work, or facts of the run."""
    others = (".training_states", "soft_target_parts", "tracking_store", "run_identity")
    others += ("memory_budget",)
    others += ("trained_models", "export_folder", "trial_folder", "presets")  # Folders.
    others += ("parameters",)
    return {n for n in names if not n.startswith("params:") and not n.endswith(others)}


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


def test_the_runs_that_users_type_are_registered(pipelines: dict[str, Pipeline]) -> None:
    assert set(pipelines) == {"__default__", *STUDENTS, *STAGES}
    assert pipelines["__default__"] == pipelines["distill"]


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_takes_and_gives_what_the_design_lists(
    stage: str, pipelines: dict[str, Pipeline]
) -> None:
    takes, gives = STAGES[stage]
    assert data_of(pipelines[stage].inputs()) == takes
    assert data_of(pipelines[stage].all_outputs()) == gives


def test_distill_is_all_stages(pipelines: dict[str, Pipeline]) -> None:
    stages = [stage for stage in STAGES if stage not in BESIDE_DISTILL]
    assert {node.name for node in pipelines["distill"].nodes} == {
        node.name for stage in stages for node in pipelines[stage].nodes
    }
    assert pipelines["__default__"] == pipelines["distill"]


@pytest.mark.parametrize("name", STUDENTS)
def test_a_whole_run_starts_from_nothing_and_trains_its_list_of_students(
    name: str, pipelines: dict[str, Pipeline]
) -> None:
    pipeline, students = pipelines[name], STUDENTS[name]
    assert data_of(pipeline.inputs()) == set()
    outputs = pipeline.all_outputs()
    trained = {n.removesuffix(".checkpoints") for n in outputs if n.endswith(".checkpoints")}
    assert trained == {"teacher", *(student.name for student in students)}
    assert outputs >= REPORT
    caches = {n for n in outputs if n.endswith("soft_targets")}
    of_teacher = any(one.learns_from == "teacher" and not one.live for one in students)
    of_students = {f"{student}.soft_targets" for student in teaching_students(students)}
    assert caches == of_students | ({"soft_targets"} if of_teacher else set())


@pytest.mark.parametrize("name", STUDENTS)
def test_the_tag_students_is_all_of_a_run_that_follows_the_teachers_cache(
    name: str, pipelines: dict[str, Pipeline]
) -> None:
    tagged = pipelines[name].only_nodes_with_tags("students")
    before = {n for pipeline in list(STAGES)[:4] for n in pipelines[pipeline].all_outputs()}
    assert tagged.all_outputs() == pipelines[name].all_outputs() - before


@pytest.mark.parametrize("name", STUDENTS)
def test_every_student_takes_what_it_learns_from_and_its_teachers_files_only_live(
    name: str, pipelines: dict[str, Pipeline]
) -> None:
    nodes = {node.namespace: node for node in pipelines[name].nodes if "train_student" in node.name}
    for student in STUDENTS[name]:
        source, inputs = student.learns_from, data_of(set(nodes[student.name].inputs))
        cache = "soft_targets" if source == "teacher" else f"{source}.soft_targets"
        of_source = {"teacher.checkpoints"} if student.live else {cache, f"{source}.card"}
        taught = set() if source == "labels" else of_source
        taught |= {"teacher.checkpoints"} if student.at_teacher_cost else set()
        assert inputs == {"images", "examples", "splits"} | taught


def test_a_comparison_needs_the_baseline() -> None:
    with pytest.raises(ParameterError, match="student_baseline"):
        evaluation.create_pipeline(["student_kd"])


@pytest.mark.parametrize("name", STUDENTS)
def test_all_arms_share_all_but_their_own_block(name: str, pipelines: dict[str, Pipeline]) -> None:
    """The design's ninth mistake: hyper-parameters of the arms that differ unseen."""
    shared = {"params:student", "params:views", "params:soft_targets"}
    for student in STUDENTS[name]:
        (node,) = [n for n in pipelines[name].nodes if n.name == f"{student.name}.train_student"]
        blocks = {n for n in node.inputs if n.startswith("params:")}
        live = {"params:soft_target_caching"} if student.live else set()
        assert blocks == shared | live | {f"params:{student.name}"}
    own = set(ArmParams.model_fields) - set(OF_TEACHING_STUDENTS)
    assert own == {
        "soft_loss", "temperature", "soft_weight", "soft_weight_schedule", "label_smoothing",
        "confidence_penalty",
    }  # fmt: skip


@pytest.mark.parametrize("node", all_nodes(), ids=lambda node: node.name)
def test_every_parameter_is_typed_by_a_model_that_kedro_can_resolve(node: Node) -> None:
    """Where a hint cannot be resolved or is no pydantic model, Kedro silently validates nothing."""
    hints = get_type_hints(node.func)
    bound = node._inputs
    assert isinstance(bound, dict), "inputs are wired by name, so that no order can be got wrong"
    for argument, dataset in bound.items():
        if dataset.startswith("params:"):
            assert issubclass(hints[argument], Params), argument


def test_kedro_finds_every_block_that_conf_sets(pipelines: dict[str, Pipeline]) -> None:
    typed = ParameterValidator(pipelines).type_extractor.extract_types_from_pipelines()
    assert set(typed) == set(load("base"))
    arms = {student.name for students in STUDENTS.values() for student in students}
    assert {name for name, kind in typed.items() if kind is ArmParams} == arms


def test_node_names_are_unique_and_name_what_runs(pipelines: dict[str, Pipeline]) -> None:
    nodes = everything(pipelines).nodes
    assert len({node.name for node in nodes}) == len(nodes)
    for node in nodes:
        short = node.name.removeprefix(f"{node.namespace}.")
        assert re.fullmatch(r"[a-z_]+", short)
        if short != "train_student":
            assert short == node.func.__name__


def test_every_data_set_has_a_catalog_entry_with_a_layer(pipelines: dict[str, Pipeline]) -> None:
    config = catalog_config()
    resolver = CatalogConfigResolver(config)
    data = {n for n in everything(pipelines).datasets() if not n.startswith(PARAMETERS)}
    for name in data:
        entry = config.get(name) or resolver.resolve_pattern(name)
        assert entry, f"{name} would live in memory only"
        assert entry["metadata"]["kedro-viz"]["layer"] in LAYERS, name
        if entry["type"] != "MemoryDataset":
            assert str(entry["filepath"]).startswith("conf" if name == "presets" else "data/0"), (
                name
            )
    unused = {name for name in config if "{" not in name} - data
    assert unused == set()


def test_no_two_data_sets_share_a_file(pipelines: dict[str, Pipeline]) -> None:
    config = catalog_config()
    resolver = CatalogConfigResolver(config)
    data = sorted(n for n in everything(pipelines).datasets() if not n.startswith(PARAMETERS))
    entries = [config.get(n) or resolver.resolve_pattern(n) for n in data]
    files = [entry["filepath"] for entry in entries if entry["type"] != "MemoryDataset"]
    assert len(set(files)) == len(files)


def test_arrays_in_cells_are_not_previewed() -> None:
    """A parquet file with array cells kills `kedro viz build --include-previews`."""
    assert catalog_config()["soft_targets"]["metadata"]["kedro-viz"]["preview"] is False


def chosen(env: str, params: dict[str, Any]) -> dict[str, Any]:
    """Parameters with the choice that the template asks for."""
    if env != "image_folder":
        return params
    split = params["transfer_split"]
    assert split["teacher"] == {}
    return params | {"transfer_split": split | {"teacher": {"labels_per_class": "all"}}}


def test_the_template_asks_how_many_labels_there_are(pipelines: dict[str, Pipeline]) -> None:
    message = r"labels_per_class.*--params=transfer_split\.teacher\.labels_per_class=all"
    with pytest.raises(Exception, match=message):
        ParameterValidator(pipelines).validate_raw_params(load("image_folder"))


@pytest.mark.parametrize("env", PRESETS)
def test_every_preset_is_valid(env: str, pipelines: dict[str, Pipeline]) -> None:
    validated = ParameterValidator(pipelines).validate_raw_params(chosen(env, load(env)))
    assert all(isinstance(block, BaseModel) for block in validated.values())


@pytest.mark.parametrize("env", PRESETS)
def test_a_preset_sets_only_blocks_that_base_has(env: str) -> None:
    """Kedro skips a block that no node asks for: a misspelt name would be silently ignored."""
    assert set(load(env)) == set(load("base"))


@pytest.mark.parametrize("env", PRESETS)
def test_the_seed_in_globals_reaches_every_stage(env: str, tmp_path: Path) -> None:
    """A preset replaces whole blocks: one that leaves `seed` out would silently train on 0."""
    shutil.copytree(CONF, tmp_path / "conf")
    (tmp_path / "conf/base/globals.yml").write_text("seed: 7\ndevice: cpu\n")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="register_new_resolver")
        loader = OmegaConfigLoader(str(tmp_path / "conf"), env=env, **CONFIG_LOADER_ARGS)
        given = chosen(env, loader["parameters"])
    validated = ParameterValidator(registered()).validate_raw_params(given)
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
