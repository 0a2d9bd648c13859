"""Evaluation: all checkpoints + the test rows -> predictions, metrics -> comparison -> report."""

from collections.abc import Iterable

from kedro.pipeline import Node, Pipeline

from kd_pipeline.errors import ParameterError
from kd_pipeline.pipelines.evaluation.nodes import (
    compare_arms,
    draw_figures,
    evaluate_models,
    write_page,
    write_report,
)

_BASELINE = "student_baseline"
_TEACHER = "teacher"
_FIGURES = ("accuracy_figure", "reliability_figure", "confusion_figure", "class_gain_figure")
_MEASURED = {"predictions": "predictions", "metrics": "metrics"}


def create_pipeline(students: Iterable[str]) -> Pipeline:
    """Wire the nodes; dataset names are those of catalog_evaluation.yml.

    Args:
        students: By name, `student_baseline` among them, in the order of the report.

    Raises:
        ParameterError: If the baseline is missing: there would be nothing to compare with.
    """
    names = tuple(students)
    if _BASELINE not in names:
        raise ParameterError("students", f"hold {_BASELINE}", names)
    # Parameter names of the function on the left, namespaced data on the right.
    checkpoints = {role: f"{role}.checkpoints" for role in (_TEACHER, *names)}
    return Pipeline([_evaluate(checkpoints), *_report()])


def _evaluate(checkpoints: dict[str, str]) -> Node:
    return Node(
        func=evaluate_models,
        inputs={
            "images": "images",
            "examples": "examples",
            "splits": "splits",
            "params": "params:evaluation",
            "soft_target_params": "params:soft_targets",
            "teacher_params": "params:teacher",
            **checkpoints,
        },
        outputs=["predictions", "metrics"],
        name="evaluate_models",
    )


def _report() -> list[Node]:
    return [
        Node(
            func=compare_arms,
            inputs={
                **_MEASURED,
                "splits": "splits",
                "params": "params:evaluation",
                "run_identity": "run_identity",
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
            inputs={"comparison": "comparison", "examples": "examples", "splits": "splits"},
            outputs="report",
            name="write_report",
        ),
        Node(
            func=write_page,
            inputs={"report": "report", **{name: name for name in _FIGURES}},
            outputs="report_page",
            name="write_page",
        ),
    ]
