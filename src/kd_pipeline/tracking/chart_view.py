"""A saved view of MLflow's chart page: the roles of one comparison as bars and curves.

MLflow keeps the views that its UI saves ("Save as new view") as tags of the experiment, and opens
one by `viewStateShareKey` in the address. The tag has the form that MLflow 3.17 writes.
"""

import base64
import json
import zlib
from collections.abc import Sequence
from typing import Any

from kd_pipeline.tracking.chart_colours import GROUPED_BY
from kd_pipeline.tracking.operations import now_ms

TAG_PREFIX = "mlflow.sharedViewState."

_BARS = ("test/accuracy", "test/nll", "test/ece")
_CURVES = ("validation/accuracy", "validation/loss", "train/loss")


def group_filter(group: str) -> str:
    """MLflow's search for the models of one Kedro run."""
    return f"tags.kd.group = '{group}' AND tags.kd.role != 'comparison'"


def runs_filter(run_ids: Sequence[str]) -> str:
    """MLflow's search for just these runs."""
    return f"attributes.run_id IN ({', '.join(repr(run_id) for run_id in run_ids)})"


def view_tag(search_filter: str) -> str:
    """The value of the experiment's tag for a view of the runs that a filter selects."""
    state = json.dumps(_state(search_filter)).encode()
    packed = f"deflate;{base64.b64encode(zlib.compress(state)).decode()}"
    times = dict.fromkeys(("createdAt", "updatedAt"), now_ms())
    return json.dumps({"name": "Arms compared", **times, "state": packed})


def _state(search_filter: str) -> dict[str, Any]:
    charts = [_chart("BAR", "test", metric) for metric in _BARS]
    charts += [{**_chart("LINE", "learning", metric), **_line(metric)} for metric in _CURVES]
    return {
        "searchFilter": search_filter,
        "orderByKey": "attributes.start_time",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": [],
        "columnOrder": [],
        "columnWidths": {},
        "runsHiddenMode": "SHOWALL",
        "compareRunCharts": charts,
        "compareRunSections": [_section("test", "Test"), _section("learning", "Learning")],
        "viewMaximized": False,
        "runListHidden": False,
        "isAccordionReordered": True,
        "useGroupedValuesInCharts": True,
        "hideEmptyCharts": True,
        "groupBy": {
            "aggregateFunction": "average",
            "groupByKeys": [{"mode": "tag", "groupByData": GROUPED_BY}],
        },
        "groupsExpanded": {},
        "globalLineChartConfig": {
            "xAxisKey": "step",
            "lineSmoothness": 0,
            "selectedXAxisMetricKey": "",
        },
    }


def _section(key: str, name: str) -> dict[str, Any]:
    return {
        "uuid": key,
        "name": name,
        "display": True,
        "isReordered": True,
        "deleted": False,
        "isGenerated": False,
    }


def _chart(kind: str, section: str, metric: str) -> dict[str, Any]:
    return {
        "uuid": f"{kind}-{metric}",
        "type": kind,
        "runsCountToCompare": 100,
        "metricSectionId": section,
        "deleted": False,
        "isGenerated": False,
        "displayName": metric,
        "metricKey": metric,
    }


def _line(metric: str) -> dict[str, Any]:
    return {
        "selectedMetricKeys": [metric],
        "lineSmoothness": 0,
        "xAxisScaleType": "linear",
        "scaleType": "linear",
        "range": {},
        "xAxisKey": "step",
        "selectedXAxisMetricKey": "",
        "yAxisKey": "metric",
        "yAxisExpressions": [],
        "ignoreOutliers": False,
        "useGlobalXaxisKey": True,
        "useGlobalLineSmoothing": True,
    }
