"""Transfer-set split: images + examples -> splits + their summary."""

from kedro.pipeline import Node, Pipeline

from kd_pipeline.pipelines.transfer_split.nodes import split_transfer_set


def create_pipeline() -> Pipeline:
    """Wire the nodes; dataset names are those of catalog_transfer_split.yml."""
    return Pipeline(
        [
            Node(
                func=split_transfer_set,
                inputs={
                    "images": "images",
                    "examples": "examples",
                    "params": "params:transfer_split",
                },
                outputs=["splits", "split_summary"],
                name="split_transfer_set",
            )
        ]
    )
