"""Past groups: MLflow -> past_groups -> group_comparison -> report.

It reads and writes nothing that another run does, so that it may run beside one.
"""

from kedro.pipeline import Node, Pipeline

from kd_pipeline.pipelines.compare_groups.nodes import (
    compare_groups,
    read_groups,
    write_group_report,
)

# RunLockHook takes no lock for nodes with this tag.
_BESIDE_OTHERS = "beside_others"


def create_pipeline() -> Pipeline:
    """Wire the nodes; dataset names are those of catalog_compare_groups.yml."""
    return Pipeline(
        [
            Node(
                func=read_groups,
                inputs={"params": "params:compare_groups", "tracking_store": "tracking_store"},
                outputs="past_groups",
                name="read_groups",
            ),
            Node(
                func=compare_groups,
                inputs={"groups": "past_groups", "params": "params:evaluation"},
                outputs=["group_comparison", "group_comparison_table"],
                name="compare_groups",
            ),
            Node(
                func=write_group_report,
                inputs={"compared": "group_comparison"},
                outputs=["group_comparison_report", "group_comparison_page"],
                name="write_group_report",
            ),
        ],
        tags=_BESIDE_OTHERS,
    )
