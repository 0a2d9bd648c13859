"""The Airflow DAG of `distill`: it parses, and its tasks one by one give what one run gives.

Airflow itself is not installed here: two of its names are stood in for while the file is read.
"""

import json
import runpy
import sys
from graphlib import TopologicalSorter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
CREATE = (
    f"kedro airflow create --pipelines=distill --env=smoke --group-by=memory --target-dir=dags "
    f"--jinja-file={ROOT}/deploy/airflow_dag.j2"
)


class Task:
    """As `BashOperator`: what it runs, and what it waits for."""

    def __init__(self, **given: Any) -> None:
        self.id, self.command, self.cwd = given["task_id"], given["bash_command"], given["cwd"]
        self.waits_for: set[Task] = set()

    def __rshift__(self, other: "Task") -> None:
        other.waits_for.add(self)


class Dag:
    """As `DAG`: its settings."""

    def __init__(self, **settings: Any) -> None:
        self.settings = settings

    def __enter__(self) -> "Dag":
        return self

    def __exit__(self, *_: object) -> None:
        pass


@pytest.fixture
def airflow(monkeypatch: pytest.MonkeyPatch) -> None:
    """The names that the file imports."""
    bash, sdk = ModuleType("bash"), ModuleType("sdk")
    bash.BashOperator, sdk.DAG = Task, Dag  # type: ignore[attr-defined]
    for name in ("airflow", "airflow.providers", "airflow.providers.standard"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "airflow.providers.standard.operators", ModuleType("o"))
    monkeypatch.setitem(sys.modules, "airflow.providers.standard.operators.bash", bash)
    monkeypatch.setitem(sys.modules, "airflow.sdk", sdk)


def without_times(comparison: Any) -> Any:
    """What does not depend on when and how fast it was made."""
    return {name: value for name, value in comparison.items() if name not in ("group", "costs")}


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.usefixtures("airflow")
def test_the_tasks_in_their_order_give_the_comparison_of_one_run(
    fresh: Any, finished_run: Any
) -> None:
    pytest.importorskip("kedro_airflow", reason="the extra `airflow` is not installed")
    (fresh.path / "conf/smoke/mlflow.yml").write_text("enabled: false\n")
    fresh.after(CREATE)
    (file,) = (fresh.path / "dags").glob("*.py")
    dag = runpy.run_path(str(file))
    assert dag["dag"].settings["max_active_tasks"] == 1
    tasks: dict[str, Task] = dag["tasks"]
    waits = {task: task.waits_for for task in tasks.values()}
    order = list(TopologicalSorter(waits).static_order())
    assert len(order) == len(tasks) > 10
    for task in order:
        assert task.cwd == "."
        fresh.after(task.command)
    made, expected = (
        json.loads((project.data / "08_reporting/comparison.json").read_text())
        for project in (fresh, finished_run)
    )
    assert without_times(made) == without_times(expected)
    report = "08_reporting/report.html"
    assert (fresh.data / report).stat().st_size == pytest.approx(
        (finished_run.data / report).stat().st_size, rel=0.1
    )
