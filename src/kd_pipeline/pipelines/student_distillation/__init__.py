"""Student distillation: images + splits (+ soft_targets) -> checkpoints, one namespace per arm."""

from kd_pipeline.pipelines.student_distillation.pipeline import create_pipeline

__all__ = ["create_pipeline"]
