"""The hook hands on what happens: checked by what it puts into the journal."""

import atexit
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from kedro.pipeline import Node, Pipeline
from matplotlib.figure import Figure
from pydantic import BaseModel, ValidationError

from kd_pipeline import events
from kd_pipeline.hooks import mlflow_hook
from kd_pipeline.hooks.mlflow_hook import MLflowHook, describe_process
from kd_pipeline.tracking import operations as ops
from kd_pipeline.tracking.journal import Journal
from kd_pipeline.tracking.sender import Sender

CHECKPOINT = SimpleNamespace(fingerprint="c0ffee")


def same(*data: object) -> object:
    return data


TRAINS = Pipeline([Node(same, "images", "checkpoints", name="train")], namespace="student_kd")
INGESTS = Pipeline([Node(same, "source", "images", name="ingest")])
COMPARES = TRAINS + Pipeline(
    [Node(same, "predictions", ["metrics", "comparison"], name="evaluate")]
)


class FakeSender(Sender):
    """Takes everything; one for all journals of a test."""

    sent: list[ops.Operation]
    found_group = ""

    def send(self, operation: ops.Operation) -> None:
        type(self).sent.append(operation)
        if isinstance(operation, ops.OpenRun):
            self.run_ids[operation.run] = f"id-{operation.run}"
            if operation.find and self.found_group:
                self.groups[operation.run] = self.found_group


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[ops.Operation]:
    FakeSender.sent, FakeSender.found_group = [], ""
    monkeypatch.setattr(mlflow_hook, "Sender", FakeSender)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return FakeSender.sent


Begin = Callable[..., MLflowHook]


@pytest.fixture
def begin(tmp_path: Path, sent: list[ops.Operation]) -> Iterator[Begin]:
    hooks: list[MLflowHook] = []

    def begin(pipeline: Pipeline, **settings: Any) -> MLflowHook:
        hook = MLflowHook()
        hooks.append(hook)
        hook.after_context_created(
            SimpleNamespace(project_path=tmp_path, env="smoke", config_loader={"mlflow": settings})
        )
        hook.before_pipeline_run({"pipeline_names": ["distill"]}, pipeline)
        return hook

    yield begin
    for hook in hooks:
        hook._abandon()


def of_kind(sent: list[ops.Operation], kind: type[Any]) -> list[Any]:
    return [operation for operation in sent if isinstance(operation, kind)]


def run_training(hook: MLflowHook, replicate: int = 0) -> None:
    hook.before_node_run(SimpleNamespace(namespace="student_kd", name="student_kd.train"), {})
    events.emit(events.TrainingStarted(replicate, {"seed": 1}, 1, 10))
    events.emit(events.EpochEnded(replicate, 1, {"train/loss": 0.5}))
    events.emit(events.TrainingEnded(replicate, "c0ffee"))
    hook.after_node_run({"student_kd.checkpoints": [CHECKPOINT]})


def comparison() -> dict[str, Any]:
    gain = {"accuracy": {"mean": 0.05, "ci95": [0.04, 0.06], "p_value": 0.5}, "nll": {"mean": -1.0}}
    return {"group": None, "env": None, "arms": {}, "gains": {"student_kd": gain}}


def metrics() -> pd.DataFrame:
    row = {"role": "student_kd", "replicate": 0, "checkpoint": "c0ffee", "test/accuracy": 0.9}
    return pd.DataFrame([row])


def test_mlflow_is_not_imported_on_the_way_to_the_first_node() -> None:
    code = (
        "import sys, kd_pipeline.hooks; sys.exit('mlflow' in sys.modules or 'torch' in sys.modules)"
    )
    env = {"PYTHONPATH": ":".join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code], env=env, check=False).returncode == 0


def test_nothing_is_sent_before_the_first_node(begin: Begin, sent: list[ops.Operation]) -> None:
    begin(COMPARES)
    assert sent == []


def test_events_belong_to_the_namespace_that_runs(begin: Begin, sent: list[ops.Operation]) -> None:
    hook = begin(TRAINS)
    run_training(hook)
    hook.after_pipeline_run()
    (opened,) = of_kind(sent, ops.OpenRun)
    assert opened.run == "student_kd-0"
    assert opened.tags["kd.role"] == "student_kd"
    assert opened.tags["kd.env"] == "smoke"
    assert opened.tags["kd.pipeline"] == "distill"
    assert [point.step for point in of_kind(sent, ops.LogMetrics)[0].points] == [1]
    assert of_kind(sent, ops.LogModel) == [ops.LogModel("student_kd-0", CHECKPOINT)]
    assert [end.status for end in of_kind(sent, ops.CloseRun)] == ["FINISHED"]


def test_the_comparison_is_filled_before_kedro_saves_it(
    begin: Begin, sent: list[ops.Operation]
) -> None:
    class Settings(BaseModel):
        num_bootstrap_samples: int = 100

    hook = begin(COMPARES)
    run_training(hook)
    inputs = {"params:evaluation": Settings()}
    hook.before_node_run(SimpleNamespace(namespace=None, name="evaluate"), inputs)
    result = comparison()
    outputs = {"metrics": metrics(), "comparison": result, "report": "# Yes", "bars": Figure()}
    hook.after_node_run(outputs)
    hook.after_pipeline_run()
    group = of_kind(sent, ops.OpenRun)[0].tags["kd.group"]
    assert (result["group"], result["env"]) == (group, "smoke")
    values = {p.name: p.value for op in of_kind(sent, ops.LogMetrics) for p in op.points}
    assert values["gain/accuracy"] == 0.05
    assert values["test/accuracy"] == 0.9
    params = of_kind(sent, ops.LogParams)[-1]
    assert params == ops.LogParams("comparison", {"num_bootstrap_samples": "100"})
    files = {op.path: op.content for op in of_kind(sent, ops.LogArtifact)}
    assert sorted(files) == ["comparison.json", "figures/bars.png", "report.md"]
    assert files["figures/bars.png"].startswith(b"\x89PNG")
    assert [end.run for end in of_kind(sent, ops.CloseRun)] == ["student_kd-0", "comparison"]


def test_a_comparison_alone_joins_the_group_of_its_runs(
    begin: Begin, sent: list[ops.Operation]
) -> None:
    """`kedro run --from-nodes=compare_arms`: the metrics come from disk."""
    hook = begin(COMPARES)
    FakeSender.found_group = "monday"
    inputs = {"metrics": metrics()}
    hook.before_node_run(SimpleNamespace(namespace=None, name="compare_arms"), inputs)
    result = comparison()
    hook.after_node_run({"comparison": result})
    hook.after_pipeline_run()
    assert result["group"] == "monday"
    assert not [op for op in of_kind(sent, ops.LogMetrics) if op.run == "student_kd-0"]


CACHES = Pipeline([Node(same, "images", "soft_target_summary", name="summarise_soft_targets")])
SOFT_TARGETS = {
    "soft_target_summary": pd.DataFrame(
        [{"teacher": "0", "entropy_at_4": 0.5}, {"teacher": "mixed", "entropy_at_4": 0.75}]
    ),
    "soft_target_confusions": pd.DataFrame([{"class_a": "3", "class_b": "5"}]),
    "soft_target_entropy_figure": Figure(),
}


@pytest.mark.parametrize(
    ("pipeline", "run"), [(CACHES, "soft_targets"), (CACHES + COMPARES, "comparison")]
)
def test_soft_targets_are_told_where_a_person_looks(
    begin: Begin, sent: list[ops.Operation], pipeline: Pipeline, run: str
) -> None:
    """On the page of the comparison, or, cached alone, on one of their own."""
    hook = begin(pipeline)
    hook.before_node_run(SimpleNamespace(namespace=None, name="summarise_soft_targets"), {})
    hook.after_node_run(SOFT_TARGETS)
    hook.after_pipeline_run()
    (opened,) = of_kind(sent, ops.OpenRun)
    assert (opened.run, opened.tags["kd.role"]) == (run, run)
    (logged,) = of_kind(sent, ops.LogMetrics)
    told = {point.name: point.value for point in logged.points}
    assert (logged.run, told) == (run, {"soft_targets/entropy_at_4": 0.75})
    files = {op.path: op for op in of_kind(sent, ops.LogArtifact)}
    assert set(files) == {
        "soft_target_summary.csv",
        "soft_target_confusions.csv",
        "figures/soft_target_entropy_figure.png",
    }
    assert files["soft_target_confusions.csv"].content == b"class_a,class_b\n3,5\n"
    assert {op.run for op in files.values()} == {run}
    assert [(end.run, end.status) for end in of_kind(sent, ops.CloseRun)] == [(run, "FINISHED")]


def test_the_caches_of_several_namespaces_are_told_apart(
    begin: Begin, sent: list[ops.Operation]
) -> None:
    hook = begin(Pipeline([Node(same, "images", "hop.soft_target_summary", name="summarise")]))
    hook.before_node_run(SimpleNamespace(namespace="hop", name="hop.summarise"), {})
    hook.after_node_run({"hop.soft_target_summary": SOFT_TARGETS["soft_target_summary"]})
    hook.after_pipeline_run()
    names = {point.name for op in of_kind(sent, ops.LogMetrics) for point in op.points}
    assert names == {"soft_targets/hop/entropy_at_4"}
    assert [op.path for op in of_kind(sent, ops.LogArtifact)] == ["hop.soft_target_summary.csv"]


def test_an_error_marks_what_is_open_with_its_reason(
    begin: Begin, sent: list[ops.Operation]
) -> None:
    hook = begin(COMPARES)
    hook.before_node_run(SimpleNamespace(namespace="student_kd", name="student_kd.train"), {})
    events.emit(events.TrainingStarted(0, {}, 1, 10))
    hook.on_pipeline_error(ValueError("the loss became nan\nmore"))
    statuses = {end.run: end.status for end in of_kind(sent, ops.CloseRun)}
    assert statuses == {"comparison": "FAILED", "student_kd-0": "FAILED"}
    reason = "student_kd.train: ValueError: the loss became nan"
    assert {op.tags["kd.error"] for op in of_kind(sent, ops.SetTags)} == {reason}


def test_an_interrupted_run_is_closed_at_exit(
    begin: Begin, sent: list[ops.Operation], monkeypatch: pytest.MonkeyPatch
) -> None:
    registered: list[Callable[[], None]] = []
    monkeypatch.setattr(atexit, "register", registered.append)
    begin(COMPARES)
    (at_exit,) = registered
    at_exit()
    assert [end.status for end in of_kind(sent, ops.CloseRun)] == ["KILLED"]


def test_the_next_run_in_a_notebook_closes_an_interrupted_one(
    begin: Begin, sent: list[ops.Operation]
) -> None:
    hook = begin(COMPARES)
    hook.before_pipeline_run({}, TRAINS)
    assert [end.run for end in of_kind(sent, ops.CloseRun)] == ["comparison"]
    run_training(hook)
    hook.after_pipeline_run()
    assert len(of_kind(sent, ops.LogParams)) == 1


@pytest.mark.parametrize(("pipeline", "settings"), [(INGESTS, {}), (COMPARES, {"enabled": False})])
def test_nothing_to_track_costs_nothing(
    begin: Begin, pipeline: Pipeline, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Journal, "start", lambda self: pytest.fail("mlflow would be imported"))
    hook = begin(pipeline, **settings)
    hook.before_node_run(SimpleNamespace(namespace=None, name="ingest"), {})
    hook.after_node_run({"metrics": metrics()})
    hook.after_pipeline_run()


def test_a_typing_error_in_mlflow_yml_is_refused(begin: Begin) -> None:
    with pytest.raises(ValidationError, match="tracking_url"):
        begin(TRAINS, tracking_url="http://tracking:5000")


def test_the_link_to_compare_is_said_at_the_end(
    begin: Begin, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    hook = begin(TRAINS)
    run_training(hook)
    hook.after_pipeline_run()
    message = caplog.records[-1].getMessage()
    assert "http://127.0.0.1:5000/#/compare-runs?runs=" in message
    assert "id-student_kd-0" in message
    assert "make ui" in message


def test_code_without_git_is_no_reason_to_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "mlflow.source.git.commit" not in describe_process(tmp_path)
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert describe_process(tmp_path)["kd.host"]


def test_without_mlflow_the_comparison_says_where_it_comes_from_all_the_same() -> None:
    hook = MLflowHook()
    comparison = {"group": None, "env": None}
    hook.after_node_run({"comparison": comparison})
    assert comparison["env"] == "base"
    assert comparison["group"]
