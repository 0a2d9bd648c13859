"""Student distillation: one namespace per arm, all wired alike."""

from collections.abc import Callable, Mapping
from typing import Any

from kedro.pipeline import Node, Pipeline

from kd_pipeline.pipelines.student_distillation.nodes import (
    train_on_labels,
    train_on_live_teacher,
    train_on_soft_targets,
)

_SHARED = {
    "images": "images",
    "examples": "examples",
    "splits": "splits",
    "training_states": "training_states",
    "student": "params:student",
    "arm": "params:arm",
    "views": "params:views",
    "reading": "params:soft_targets",
}
_NODE = "train_student"
_FROM_OUTSIDE = {"images", "examples", "splits"}

# What an arm learns from: its node, and what that takes besides what all arms take.
_SOURCES: dict[str, tuple[Callable[..., Any], dict[str, str]]] = {
    "labels": (train_on_labels, {}),
    "cache": (
        train_on_soft_targets,
        {"soft_targets": "soft_targets", "teacher_card": "teacher.card"},
    ),
    "live": (train_on_live_teacher, {"checkpoints": "teacher.checkpoints"}),
}


def create_pipeline(arms: Mapping[str, str]) -> Pipeline:
    """Wire one node per arm; dataset names are those of catalog_student_distillation.yml.

    Args:
        arms: Each arm's name, and what it learns from: `labels`, `cache` or `live`.
    """
    return sum((_arm(name, source) for name, source in arms.items()), Pipeline([]))


def _arm(name: str, source: str) -> Pipeline:
    function, teacher = _SOURCES[source]
    # The teacher's data keep their names; inside the namespace they have names of their own.
    inside = {parameter: f"{parameter}_of_teacher" for parameter in teacher}
    inputs = {**_SHARED, **inside}
    if source == "live":
        inputs["caching"] = "params:soft_target_caching"
    node = Node(func=function, inputs=inputs, outputs=["checkpoints", "history"], name=_NODE)
    return Pipeline(
        [node],
        namespace=name,
        inputs={
            **{dataset: dataset for dataset in _FROM_OUTSIDE},
            **{inside[parameter]: dataset for parameter, dataset in teacher.items()},
        },
        parameters={
            value: f"params:{name}" if value == "params:arm" else value
            for value in inputs.values()
            if value.startswith("params:")
        },
    )
