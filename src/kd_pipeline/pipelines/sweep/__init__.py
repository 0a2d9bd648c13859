"""Sweep: search the settings of arms on validation, with as many trials for each."""

from kd_pipeline.pipelines.sweep.pipeline import create_pipeline

__all__ = ["create_pipeline"]
