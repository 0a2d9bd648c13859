"""Data ingest: files or a packaged data set -> images, examples, rejected_images."""

from kd_pipeline.pipelines.data_ingest.pipeline import create_pipeline

__all__ = ["create_pipeline"]
