"""Teacher training: images + examples + splits -> teacher.checkpoints, history and card."""

from kedro.pipeline import Node, Pipeline

from kd_pipeline.pipelines.teacher_training.nodes import train_teacher

_SHARED = ("images", "examples", "splits", "tracking_store", "memory_budget")


def create_pipeline() -> Pipeline:
    """Wire the node; dataset names are those of catalog_teacher_training.yml."""
    return Pipeline(
        [
            Node(
                func=train_teacher,
                inputs={
                    **{name: name for name in _SHARED},
                    "training_states": "training_states",
                    "params": "params:teacher",
                },
                outputs=["checkpoints", "history", "card"],
                name="train_teacher",
            ),
        ],
        namespace="teacher",
        inputs=set(_SHARED),
        parameters={"params:teacher"},
    )
