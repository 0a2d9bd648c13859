"""Sweep: images + splits (+ soft targets) -> one search per arm -> tables, figures, a preset."""

from collections.abc import Iterable, Mapping

from kedro.pipeline import Node, Pipeline

from kd_pipeline.pipelines.sweep.nodes import (
    draw_sweep,
    make_search,
    tabulate_trials,
    write_sweep_preset,
)

_DATA = {name: name for name in ("images", "examples", "splits", "trial_folder", "memory_budget")}
_BLOCKS = {
    "sweep": "params:sweep",
    "student": "params:student",
    "arm": "params:arm",
    "views": "params:views",
    "soft_target_params": "params:soft_targets",
}
_CACHE = {
    "soft_targets": ("soft_targets_of_teacher", "soft_targets"),
    "teacher_card": ("card_of_teacher", "teacher.card"),
}
_FIGURES = ("sweep_history_figure", "sweep_importance_figure", "sweep_slice_figure")


def create_pipeline(arms: Mapping[str, bool]) -> Pipeline:
    """Wire the nodes; dataset names are those of catalog_sweep.yml.

    Args:
        arms: Those that may be searched, by name: whether each learns from the teacher's cache.
    """
    searches = (_wire(name, taught=taught) for name, taught in arms.items())
    return sum(searches, Pipeline([])) + Pipeline(_results(arms))


def _wire(arm: str, *, taught: bool) -> Pipeline:
    cache = _CACHE if taught else {}
    inputs = {**_DATA, **_BLOCKS, **{name: inside for name, (inside, _) in cache.items()}}
    return Pipeline(
        [Node(func=make_search(arm), inputs=inputs, outputs="search", name="search")],
        namespace=arm,
        inputs={**_DATA, **dict(cache.values())},
        parameters={v: f"params:{arm}" if v == "params:arm" else v for v in _BLOCKS.values()},
    )


def _results(arms: Iterable[str]) -> list[Node]:
    found = {"sweep": "params:sweep", **{arm: f"{arm}.search" for arm in arms}}
    return [
        Node(
            func=tabulate_trials,
            inputs=found,
            outputs=["sweep_trials", "sweep_best_values"],
            name="tabulate_trials",
        ),
        Node(func=draw_sweep, inputs=found, outputs=list(_FIGURES), name="draw_sweep"),
        Node(
            func=write_sweep_preset,
            inputs={"parameters": "parameters", "presets": "presets", **found},
            outputs="sweep_preset",
            name="write_sweep_preset",
        ),
    ]
