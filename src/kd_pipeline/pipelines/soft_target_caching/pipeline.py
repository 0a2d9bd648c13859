"""Soft-target caching: teacher.checkpoints + images + splits -> soft_targets + their summary."""

from kedro.pipeline import Node, Pipeline

from kd_pipeline.pipelines.soft_target_caching.nodes import (
    cache_soft_targets,
    summarise_soft_targets,
)


def create_pipeline() -> Pipeline:
    """Wire the nodes; dataset names are those of catalog_soft_target_caching.yml."""
    return Pipeline(
        [
            Node(
                func=cache_soft_targets,
                inputs={
                    "checkpoints": "checkpoints",
                    "images": "images",
                    "splits": "splits",
                    "params": "params:soft_target_caching",
                    "views": "params:views",
                },
                outputs="soft_targets",
                name="cache_soft_targets",
            ),
            Node(
                func=summarise_soft_targets,
                inputs={"soft_targets": "soft_targets", "examples": "examples"},
                outputs="soft_target_summary",
                name="summarise_soft_targets",
            ),
        ],
        inputs={"checkpoints": "teacher.checkpoints"},
    )
