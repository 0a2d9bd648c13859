"""Teacher training: images + examples + splits -> teacher.checkpoints."""

from kd_pipeline.pipelines.teacher_training.pipeline import create_pipeline

__all__ = ["create_pipeline"]
