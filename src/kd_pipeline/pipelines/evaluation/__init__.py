"""Evaluation: the test set is read once, and every arm is compared with the baseline."""

from kd_pipeline.pipelines.evaluation.pipeline import create_pipeline

__all__ = ["create_pipeline"]
