"""Export: checkpoints + calibration rows -> files for devices, measured on the test set."""

from kd_pipeline.pipelines.model_export.pipeline import create_pipeline

__all__ = ["create_pipeline"]
