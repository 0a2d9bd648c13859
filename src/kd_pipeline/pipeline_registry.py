"""Every pipeline that `kedro run --pipeline=` knows, written out by hand.

Kedro's `find_pipelines` imports only a folder of the requested name, so that
`kedro run --pipeline=distill` would find nothing.
"""

import warnings
from contextlib import suppress

from kedro.pipeline import Pipeline

from kd_pipeline.errors import ParameterError
from kd_pipeline.pipelines import (
    chain,
    data_ingest,
    evaluation,
    soft_target_caching,
    student_distillation,
    teacher_training,
    transfer_split,
    verify_soft_targets,
)
from kd_pipeline.pipelines.chain.hop_list import hop_names

# Stages read the data of other namespaces, which is what the dots say here.
warnings.filterwarnings("ignore", message="One or more dataset names contain '.'")

ARMS = {
    "student_kd": "cache",
    "student_baseline": "labels",
    "student_smoothed": "labels",
    "student_pseudo": "cache",
}
"""Each arm, and what it learns from; the YAML block of its name sets it up."""

LIVE_ARMS = {"student_live": "live", "student_baseline": "labels", "student_smoothed": "labels"}
"""The arms of `distill_live`, which caches nothing: the teacher runs beside the student."""


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
    # Stages that are asked for by name, and no part of a whole run.
    beside = {
        "verify_soft_targets": verify_soft_targets.create_pipeline(),
        "chain": _chain(stages),
    }
    whole = {"distill": distill, "distill_live": _distill_live(stages)}
    return {"__default__": distill, **whole, **stages, **beside}


def _distill_live(stages: dict[str, Pipeline]) -> Pipeline:
    students = student_distillation.create_pipeline(LIVE_ARMS)
    return _up_to_the_teacher(stages) + students + evaluation.create_pipeline(LIVE_ARMS)


def _chain(stages: dict[str, Pipeline]) -> Pipeline:
    """Its hops are those of the list in the parameters."""
    with suppress(ParameterError):  # All pipelines are wired for any: the others need no list.
        if hops := hop_names():
            wired = chain.create_pipeline(hops, stages["soft_target_caching"])
            return _up_to_the_teacher(stages) + wired
    return chain.without_list()


def _up_to_the_teacher(stages: dict[str, Pipeline]) -> Pipeline:
    return stages["data_ingest"] + stages["transfer_split"] + stages["teacher_training"]
