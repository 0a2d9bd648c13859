"""Export: checkpoints -> exported_models -> their metrics -> export_comparison -> published files.

Every file is made in a hidden folder; only the last node moves files to their place.
"""

from collections.abc import Iterable

from kedro.pipeline import Node, Pipeline

from kd_pipeline.pipelines.model_export.nodes import (
    compare_exports,
    export_models,
    measure_exports,
    publish_exports,
)

_TEACHER = "teacher"
_DATA = {"images": "images", "examples": "examples", "splits": "splits"}
_MEASURED = {"predictions": "export_predictions", "metrics": "export_metrics"}


def create_pipeline(students: Iterable[str] | None = None) -> Pipeline:
    """Wire the nodes; dataset names are those of catalog_model_export.yml.

    Args:
        students: Of the run whose last stage this is: it exports where `model_export.enabled` is
            true. None is the stage by itself, which reads the models it needs from disk.
    """
    roles = () if students is None else (_TEACHER, *students)
    return Pipeline([_export(roles), *_prove_and_publish()])


def _export(roles: Iterable[str]) -> Node:
    return Node(
        func=export_models,
        inputs={
            **_DATA,
            "params": "params:model_export",
            "folder": "export_folder",
            "trained_models": "trained_models",
            "tracking_store": "tracking_store",
            **{role: f"{role}.checkpoints" for role in roles},
            # A file that is refused must not cost the run its report.
            **({"after": "report"} if roles else {}),
        },
        outputs="exported_models",
        name="export_models",
    )


def _prove_and_publish() -> list[Node]:
    return [
        Node(
            func=measure_exports,
            inputs={
                **_DATA,
                "exported_models": "exported_models",
                "params": "params:model_export",
                "evaluation": "params:evaluation",
            },
            outputs=["export_predictions", "export_metrics"],
            name="measure_exports",
        ),
        Node(
            func=compare_exports,
            inputs={
                **_MEASURED,
                "exported_models": "exported_models",
                "params": "params:model_export",
                "evaluation": "params:evaluation",
            },
            outputs=["export_comparison", "export_figure"],
            name="compare_exports",
        ),
        Node(
            func=publish_exports,
            inputs={
                **_DATA,
                "exported_models": "exported_models",
                "predictions": "export_predictions",
                "comparison": "export_comparison",
                "figure": "export_figure",
                "params": "params:model_export",
                "evaluation": "params:evaluation",
                "folder": "export_folder",
                "tracking_store": "tracking_store",
                "run_identity": "run_identity",
            },
            outputs=["export_report", "export_report_page"],
            name="publish_exports",
        ),
    ]
