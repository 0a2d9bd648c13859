"""Student distillation: images + splits (+ soft targets) -> checkpoints, by student."""

from kd_pipeline.pipelines.student_distillation.pipeline import (
    Student,
    create_pipeline,
    teaching_students,
)

__all__ = ["Student", "create_pipeline", "teaching_students"]
