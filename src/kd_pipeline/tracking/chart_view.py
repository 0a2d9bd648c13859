"""A saved view of MLflow's chart page: the arms of one comparison, grouped, bars and curves.

MLflow keeps the views that its UI saves ("Save as new view") as tags of the experiment, and opens
one by `viewStateShareKey` in the address. This writes such a tag, in the form that the UI of
MLflow 3.17 writes: by hand, the same page takes a dozen clicks.
"""

import base64
import json
import time
import zlib
from collections.abc import Sequence
from typing import Any

TAG_PREFIX = "mlflow.sharedViewState."
NAME = "Arms compared"

_BARS = ("test/accuracy", "test/nll", "test/ece")
_CURVES = ("validation/accuracy", "validation/loss", "train/loss")


def group_filter(group: str) -> str:
    """MLflow's search for the models of one Kedro run."""
    return f"tags.kd.group = '{group}' AND tags.kd.role != 'comparison'"


def runs_filter(run_ids: Sequence[str]) -> str:
    """MLflow's search for just these runs."""
    return f"attributes.run_id IN ({', '.join(repr(run_id) for run_id in run_ids)})"


def view_tag(search_filter: str) -> str:
    """The value of the experiment's tag that holds the view of the runs found by a filter."""
    state = json.dumps(_state(search_filter)).encode()
    packed = f"deflate;{base64.b64encode(zlib.compress(state)).decode()}"
    now_ms = int(time.time() * 1000)
    return json.dumps({"name": NAME, "createdAt": now_ms, "updatedAt": now_ms, "state": packed})


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
            "groupByKeys": [{"mode": "tag", "groupByData": "kd.role"}],
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
