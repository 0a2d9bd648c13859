"""Student distillation: images + splits (+ soft targets) -> checkpoints, by student."""

from kd_pipeline.pipelines.student_distillation.pipeline import (
    TEACHER,
    Student,
    create_pipeline,
    teaching_students,
)

__all__ = ["TEACHER", "Student", "create_pipeline", "teaching_students"]
