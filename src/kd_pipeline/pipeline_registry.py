"""Every pipeline that `kedro run --pipeline=` knows, written out by hand.

Kedro's `find_pipelines` imports only a folder of the requested name, so that
`kedro run --pipeline=distill` would find nothing.
"""

import warnings

from kedro.pipeline import Pipeline

from kd_pipeline.pipelines import (
    data_ingest,
    evaluation,
    soft_target_caching,
    student_distillation,
    teacher_training,
    transfer_split,
)

# Stages read the data of other namespaces, which is what the dots say here.
warnings.filterwarnings("ignore", message="One or more dataset names contain '.'")

ARMS = {
    "student_kd": True,
    "student_baseline": False,
    "student_smoothed": False,
    "student_pseudo": True,
}
"""Each arm, and whether it learns from soft targets; the YAML block of its name sets it up."""


def register_pipelines() -> dict[str, Pipeline]:
    """Map names to pipelines; `distill` is the whole run and the default."""
    stages = {
        "data_ingest": data_ingest.create_pipeline(),
        "transfer_split": transfer_split.create_pipeline(),
        "teacher_training": teacher_training.create_pipeline(),
        "soft_target_caching": soft_target_caching.create_pipeline(),
        "student_distillation": student_distillation.create_pipeline(ARMS),
        "evaluation": evaluation.create_pipeline(ARMS),
    }
    distill = sum(stages.values(), Pipeline([]))
    return {"__default__": distill, "distill": distill, **stages}
