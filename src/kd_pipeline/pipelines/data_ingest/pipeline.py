"""Data ingest: files or a packaged data set -> images, examples, rejected_images."""

from kedro.pipeline import Node, Pipeline

from kd_pipeline.pipelines.data_ingest.nodes import ingest_image_source


def create_pipeline() -> Pipeline:
    """Wire the node; dataset names are those of catalog_data_ingest.yml."""
    return Pipeline(
        [
            Node(
                func=ingest_image_source,
                inputs={"params": "params:data_ingest", "memory_budget": "memory_budget"},
                outputs=["images", "examples", "rejected_images"],
                name="ingest_image_source",
            )
        ]
    )
