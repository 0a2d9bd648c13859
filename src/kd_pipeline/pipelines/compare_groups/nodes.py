"""Nodes that compare past groups. pandas and mlflow are imported only when a node runs."""

from typing import TYPE_CHECKING, Any

from kd_pipeline.evaluation.settings import EvaluationParams
from kd_pipeline.tracking.settings import CompareGroupsParams

if TYPE_CHECKING:
    from pandas import DataFrame

    from kd_pipeline.tracking.store import Store
else:  # Kedro resolves every hint of a node to validate its parameters; these would import pandas.
    DataFrame = Store = object


def read_groups(params: CompareGroupsParams, tracking_store: Store) -> list[dict[str, Any]]:
    """Read past groups from MLflow, with their predictions where it has them."""
    from kd_pipeline.tracking.groups import read_groups

    return read_groups(tracking_store, params)


def compare_groups(
    groups: list[dict[str, Any]], params: EvaluationParams
) -> tuple[dict[str, Any], DataFrame]:
    """Compare each two of them in pairs where they read the same test set.

    Returns:
        The comparison, and all of its numbers as a table.
    """
    from kd_pipeline.evaluation.groups import compare_groups, group_table

    compared = compare_groups(groups, params)
    return compared, group_table(compared)


def write_group_report(compared: dict[str, Any]) -> tuple[str, str]:
    """State what differs, as Markdown and as HTML."""
    from kd_pipeline.evaluation.group_report import group_report
    from kd_pipeline.evaluation.page import html_page

    report = group_report(compared)
    return report, html_page(report, {})
