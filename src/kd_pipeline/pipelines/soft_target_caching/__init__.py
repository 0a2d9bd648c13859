"""Soft-target caching: teacher.checkpoints + images + splits -> soft_targets."""

from kd_pipeline.pipelines.soft_target_caching.pipeline import create_pipeline

__all__ = ["create_pipeline"]
