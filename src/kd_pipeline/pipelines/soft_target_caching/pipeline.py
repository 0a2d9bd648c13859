"""Soft-target caching: checkpoints + images + splits -> soft_targets + their summary."""

from kedro.pipeline import Node, Pipeline

from kd_pipeline.pipelines.soft_target_caching.nodes import (
    cache_soft_targets,
    draw_soft_targets,
    summarise_soft_targets,
)

_TEACHER = "teacher"
_IN_SHARDS = "in_shards"
_SOFT_TARGETS = {
    "soft_targets": "soft_targets",
    "examples": "examples",
    "soft_target_params": "params:soft_targets",
    "memory_budget": "memory_budget",
}


def create_pipeline(teacher: str = _TEACHER) -> Pipeline:
    """Wire the nodes; dataset names are those of catalog_soft_target_caching.yml.

    Args:
        teacher: The model that labels: the teacher, or a student that teaches others, whose cache
            and figures then lie in the namespace of its name.
    """
    nodes = [_cache(), *_inspect()]
    if teacher == _TEACHER:
        inputs = {"checkpoints": "teacher.checkpoints"}
        return Pipeline(nodes, inputs=inputs, tags=_IN_SHARDS)
    return Pipeline(
        nodes,
        tags=_IN_SHARDS,
        namespace=teacher,
        inputs={"images", "examples", "splits", "memory_budget"},
        parameters={
            value for node in nodes for value in node.inputs if value.startswith("params:")
        },
    )


def _cache() -> Node:
    return Node(
        func=cache_soft_targets,
        inputs={
            "checkpoints": "checkpoints",
            "images": "images",
            "examples": "examples",
            "splits": "splits",
            "parts": "soft_target_parts",
            "teacher": "params:teacher",
            "caching": "params:soft_target_caching",
            "views": "params:views",
            "soft_target_params": "params:soft_targets",
        },
        outputs="soft_targets",
        name="cache_soft_targets",
    )


def _inspect() -> list[Node]:
    return [
        Node(
            func=summarise_soft_targets,
            inputs=_SOFT_TARGETS,
            outputs=[
                "soft_target_summary",
                "soft_target_confusions",
                "soft_target_entropy_figure",
                "soft_target_confidence_figure",
            ],
            name="summarise_soft_targets",
        ),
        Node(
            func=draw_soft_targets,
            inputs={**_SOFT_TARGETS, "images": "images", "views": "params:views"},
            outputs="soft_target_grid_figure",
            name="draw_soft_targets",
        ),
    ]
