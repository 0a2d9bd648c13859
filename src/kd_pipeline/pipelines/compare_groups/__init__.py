"""Past groups of runs, as MLflow has them, side by side."""

from kd_pipeline.pipelines.compare_groups.pipeline import create_pipeline

__all__ = ["create_pipeline"]
