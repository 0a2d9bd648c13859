"""Verification: random rows of soft_targets labelled again -> soft_target_verification."""

from kd_pipeline.pipelines.verify_soft_targets.pipeline import create_pipeline

__all__ = ["create_pipeline"]
