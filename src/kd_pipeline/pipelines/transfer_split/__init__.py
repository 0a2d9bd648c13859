"""Transfer-set split: examples -> splits."""

from kd_pipeline.pipelines.transfer_split.pipeline import create_pipeline

__all__ = ["create_pipeline"]
