"""Verification: soft_targets + teacher.checkpoints + images -> soft_target_verification.

Not part of `distill`: it runs the teacher once more, long after caching if need be.
"""

from kedro.pipeline import Node, Pipeline

from kd_pipeline.pipelines.verify_soft_targets.nodes import verify_soft_targets


def create_pipeline() -> Pipeline:
    """Wire the node; dataset names are those of catalog_verify_soft_targets.yml."""
    return Pipeline(
        [
            Node(
                func=verify_soft_targets,
                inputs={
                    "soft_targets": "soft_targets",
                    "checkpoints": "checkpoints",
                    "images": "images",
                    "examples": "examples",
                    "splits": "splits",
                    "params": "params:soft_target_verification",
                    "teacher": "params:teacher",
                    "caching": "params:soft_target_caching",
                    "views": "params:views",
                },
                outputs="soft_target_verification",
                name="verify_soft_targets",
            )
        ],
        inputs={"checkpoints": "teacher.checkpoints"},
    )
