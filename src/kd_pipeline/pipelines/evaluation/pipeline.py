"""Evaluation: all checkpoints + the test rows -> predictions, metrics -> comparison -> report."""

from collections.abc import Iterable

from kedro.pipeline import Node, Pipeline

from kd_pipeline.errors import ParameterError
from kd_pipeline.pipelines.evaluation.nodes import (
    compare_arms,
    draw_figures,
    evaluate_models,
    write_report,
)

_BASELINE = "student_baseline"
_TEACHER = "teacher"
_FIGURES = ("accuracy_figure", "reliability_figure", "confusion_figure", "class_gain_figure")


def create_pipeline(arms: Iterable[str]) -> Pipeline:
    """Wire the nodes; dataset names are those of catalog_evaluation.yml.

    Args:
        arms: The student arms by name, `student_baseline` among them, in the order of the report.

    Raises:
        ParameterError: If the baseline is missing: there would be nothing to compare with.
    """
    names = tuple(arms)
    if _BASELINE not in names:
        raise ParameterError("arms", f"hold {_BASELINE}", names)
    # Parameter names of the function on the left, namespaced data on the right.
    checkpoints = {role: f"{role}.checkpoints" for role in (_TEACHER, *names)}
    return Pipeline([_evaluate(checkpoints), *_compare_and_tell()])


def _evaluate(checkpoints: dict[str, str]) -> Node:
    return Node(
        func=evaluate_models,
        inputs={
            "images": "images",
            "examples": "examples",
            "splits": "splits",
            "params": "params:evaluation",
            "mixing": "params:soft_targets",
            **checkpoints,
        },
        outputs=["predictions", "metrics"],
        name="evaluate_models",
    )


def _compare_and_tell() -> list[Node]:
    return [
        Node(
            func=compare_arms,
            inputs={
                "predictions": "predictions",
                "metrics": "metrics",
                "params": "params:evaluation",
            },
            outputs="comparison",
            name="compare_arms",
        ),
        Node(
            func=draw_figures,
            inputs={
                "predictions": "predictions",
                "comparison": "comparison",
                "examples": "examples",
            },
            outputs=list(_FIGURES),
            name="draw_figures",
        ),
        Node(
            func=write_report,
            inputs={"comparison": "comparison", "metrics": "metrics"},
            outputs="report",
            name="write_report",
        ),
    ]
