"""Soft-target caching: teacher.checkpoints + images + splits -> soft_targets + their summary."""

from kedro.pipeline import Node, Pipeline

from kd_pipeline.pipelines.soft_target_caching.looking import (
    draw_soft_targets,
    summarise_soft_targets,
)
from kd_pipeline.pipelines.soft_target_caching.nodes import cache_soft_targets


def create_pipeline() -> Pipeline:
    """Wire the nodes; dataset names are those of catalog_soft_target_caching.yml."""
    return Pipeline(
        [
            Node(
                func=cache_soft_targets,
                inputs={
                    "checkpoints": "checkpoints",
                    "images": "images",
                    "examples": "examples",
                    "splits": "splits",
                    "parts": "soft_target_parts",
                    "params": "params:soft_target_caching",
                    "views": "params:views",
                    "reading": "params:soft_targets",
                },
                outputs="soft_targets",
                name="cache_soft_targets",
            ),
            Node(
                func=summarise_soft_targets,
                inputs={
                    "soft_targets": "soft_targets",
                    "examples": "examples",
                    "reading": "params:soft_targets",
                },
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
                inputs={
                    "soft_targets": "soft_targets",
                    "images": "images",
                    "examples": "examples",
                    "reading": "params:soft_targets",
                    "views": "params:views",
                },
                outputs="soft_target_grid_figure",
                name="draw_soft_targets",
            ),
        ],
        inputs={"checkpoints": "teacher.checkpoints"},
    )
