"""Student distillation: one namespace per arm, all wired alike."""

from collections.abc import Mapping

from kedro.pipeline import Node, Pipeline

from kd_pipeline.pipelines.student_distillation.nodes import train_on_labels, train_on_soft_targets

SHARED_INPUTS = {
    "images": "images",
    "examples": "examples",
    "splits": "splits",
    "training_states": "training_states",
    "student": "params:student",
    "arm": "params:arm",
    "views": "params:views",
}


def create_pipeline(arms: Mapping[str, bool]) -> Pipeline:
    """Wire one node per arm; dataset names are those of catalog_student_distillation.yml.

    Args:
        arms: Each arm's name, and whether it learns from soft targets.
    """
    return sum((_arm(name, uses) for name, uses in arms.items()), Pipeline([]))


def _arm(name: str, uses_soft_targets: bool) -> Pipeline:
    inputs, shared = dict(SHARED_INPUTS), {"images", "examples", "splits"}
    renamed: dict[str, str] = {dataset: dataset for dataset in shared}
    if uses_soft_targets:
        inputs |= {"soft_targets": "soft_targets", "teacher_card": "teacher_card"}
        renamed |= {"soft_targets": "soft_targets", "teacher_card": "teacher.card"}
    node = Node(
        func=train_on_soft_targets if uses_soft_targets else train_on_labels,
        inputs=inputs,
        outputs=["checkpoints", "history"],
        name="train_student",
    )
    return Pipeline(
        [node],
        namespace=name,
        inputs=renamed,
        parameters={
            "params:student": "params:student",
            "params:views": "params:views",
            "params:arm": f"params:{name}",
        },
    )
