"""Teacher training: images + examples + splits -> teacher.checkpoints, history and card."""

from kedro.pipeline import Node, Pipeline

from kd_pipeline.pipelines.teacher_training.nodes import describe_teacher, train_teacher

NAMESPACE = "teacher"


def create_pipeline() -> Pipeline:
    """Wire the nodes; dataset names are those of catalog_teacher_training.yml."""
    return Pipeline(
        [
            Node(
                func=train_teacher,
                inputs={
                    "images": "images",
                    "examples": "examples",
                    "splits": "splits",
                    "training_states": "training_states",
                    "params": "params:teacher",
                },
                outputs=["checkpoints", "history"],
                name="train_teacher",
            ),
            Node(
                func=describe_teacher,
                inputs={"checkpoints": "checkpoints"},
                outputs="card",
                name="describe_teacher",
            ),
        ],
        namespace=NAMESPACE,
        inputs={"images", "examples", "splits"},
        parameters={"params:teacher"},
    )
