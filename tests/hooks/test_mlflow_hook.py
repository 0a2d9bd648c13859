"""The hook passes on what happens: checked by what its journal sends."""

import atexit
import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from kedro.io import DataCatalog, MemoryDataset
from kedro.pipeline import Node, Pipeline
from kedro_datasets.matplotlib import MatplotlibDataset
from matplotlib.figure import Figure
from pydantic import BaseModel

from kd_pipeline import events
from kd_pipeline.data.images import ImageSet
from kd_pipeline.errors import SettingsError
from kd_pipeline.hooks import mlflow_hook
from kd_pipeline.hooks.inputs import fingerprint_of_test_set
from kd_pipeline.hooks.mlflow_hook import (
    RUN_IDENTITY,
    TRACKING_STORE,
    MLflowHook,
    describe_process,
)
from kd_pipeline.tracking.journal import Journal
from kd_pipeline.tracking.operations import Operation
from kd_pipeline.tracking.sender import Sender
from kd_pipeline.tracking.store import Store

CHECKPOINT = SimpleNamespace(fingerprint="c0ffee")


def same(*data: object) -> object:
    return data


TRAINS = Pipeline([Node(same, "images", "checkpoints", name="train")], namespace="student_kd")
INGESTS = Pipeline([Node(same, "source", "images", name="ingest")])
COMPARES = TRAINS + Pipeline(
    [Node(same, "predictions", ["metrics", "comparison"], name="evaluate")]
)


class FakeSender(Sender):
    """Takes everything; one list for all journals of a test."""

    sent: list[Operation]
    experiment_id = "1"

    def send(self, operation: Operation) -> None:
        self.sent.append(operation)
        if operation.kind == "open_run":
            self.run_ids[operation.run] = f"id-{operation.run}"


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[Operation]:
    FakeSender.sent = []
    monkeypatch.setattr(mlflow_hook, "SendingProcess", FakeSender)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return FakeSender.sent


def empty_catalog() -> DataCatalog:
    """With the entries that the hook fills."""
    return DataCatalog({name: MemoryDataset() for name in (TRACKING_STORE, RUN_IDENTITY)})


Begin = Callable[..., MLflowHook]


@pytest.fixture
def begin(tmp_path: Path, sent: list[Operation]) -> Iterator[Begin]:
    hooks: list[MLflowHook] = []

    def begin(
        pipeline: Pipeline, catalog: DataCatalog | None = None, **settings: Any
    ) -> MLflowHook:
        hook = MLflowHook()
        hooks.append(hook)
        catalog = empty_catalog() if catalog is None else catalog
        hook.after_context_created(
            SimpleNamespace(project_path=tmp_path, env="smoke", config_loader={"mlflow": settings})
        )
        hook.after_catalog_created(catalog)
        hook.before_pipeline_run({"pipeline_names": ["distill"]}, pipeline, catalog)
        return hook

    yield begin
    for hook in hooks:
        hook.on_pipeline_error(KeyboardInterrupt())


def of_kind(sent: list[Operation], kind: str) -> list[Operation]:
    return [operation for operation in sent if operation.kind == kind]


def runs_and_statuses(sent: list[Operation]) -> dict[str, str]:
    return {end.run: end.values["status"] for end in of_kind(sent, "close_run")}


def values_of(sent: list[Operation]) -> dict[str, float]:
    points = [point for op in of_kind(sent, "log_metrics") for point in op.values["points"]]
    return {point.name: point.value for point in points}


def run_training(hook: MLflowHook, replicate: int = 0) -> None:
    hook.before_node_run(SimpleNamespace(namespace="student_kd", name="student_kd.train"), {})
    events.emit(events.TrainingStarted(replicate, {"seed": 1}, 1))
    events.emit(events.EpochEnded(replicate, 1, {"train/loss": 0.5}))
    events.emit(events.TrainingEnded(replicate, "c0ffee"))
    hook.after_node_run({"student_kd.checkpoints": [CHECKPOINT]})


def comparison() -> dict[str, Any]:
    gain = {
        "accuracy": {
            "mean": 0.05,
            "ci95": [0.04, 0.06],
            "p_value": 0.5,
            "p_value_holm": 0.5,
            "smallest_detectable": 0.02,
        },
        "nll": {"mean": -1.0},
        "gap_recovered": None,
    }
    gains = {"student_kd": gain}
    return {"group": "g", "env": "smoke", "gains": gains, "distilled": "student_kd", "costs": {}}


def drawn() -> Figure:
    figure = Figure()
    figure.subplots()
    return figure


def metrics() -> pd.DataFrame:
    row = {"role": "student_kd", "replicate": 0, "checkpoint": "c0ffee", "test/accuracy": 0.9}
    return pd.DataFrame([row])


def test_mlflow_is_not_imported_on_the_way_to_the_first_node() -> None:
    code = (
        "import sys, kd_pipeline.hooks; sys.exit('mlflow' in sys.modules or 'torch' in sys.modules)"
    )
    env = {"PYTHONPATH": ":".join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code], env=env, check=False).returncode == 0


def test_nothing_is_sent_before_the_first_node(begin: Begin, sent: list[Operation]) -> None:
    begin(COMPARES)
    assert sent == []


def test_events_belong_to_the_namespace_that_runs(begin: Begin, sent: list[Operation]) -> None:
    hook = begin(TRAINS)
    run_training(hook)
    hook.after_pipeline_run()
    (opened,) = of_kind(sent, "open_run")
    assert opened.run == "student_kd-0"
    tags = opened.values["tags"]
    assert (tags["kd.role"], tags["kd.env"], tags["kd.pipeline"]) == (
        "student_kd",
        "smoke",
        "distill",
    )
    assert [point.step for point in of_kind(sent, "log_metrics")[0].values["points"]] == [1]
    assert of_kind(sent, "log_model") == [
        Operation("log_model", "student_kd-0", {"content": CHECKPOINT})
    ]
    assert runs_and_statuses(sent) == {"student_kd-0": "FINISHED"}


def test_runs_of_an_arm_have_its_name_and_its_colour(begin: Begin, sent: list[Operation]) -> None:
    hook = begin(COMPARES)
    run_training(hook)
    hook.after_pipeline_run()
    tags = {op.run: op.values["tags"] for op in of_kind(sent, "open_run")}
    assert tags["student_kd-0"]["kd.arm"].rstrip() == "distilled (student_kd)"
    assert tags["student_kd-0"]["mlflow.runColor"] == "#137dae"
    assert not {"kd.arm", "mlflow.runColor"} & set(tags["comparison"])


class Settings(BaseModel):
    num_bootstrap_samples: int = 100


def test_the_comparison_holds_its_settings_gains_figures_and_report(
    begin: Begin, sent: list[Operation]
) -> None:
    hook = begin(COMPARES)
    run_training(hook)
    node = SimpleNamespace(namespace=None, name="evaluate")
    hook.before_node_run(node, {"params:evaluation": Settings(), "metrics": metrics()})
    result = comparison()
    outputs = {"metrics": metrics(), "comparison": result, "report": "# Yes"}
    hook.after_node_run(outputs)
    hook.after_dataset_saved("bars", drawn())
    hook.after_node_run({"report_page": "<h1>Yes</h1>"})
    hook.after_pipeline_run()
    assert result == comparison()
    values = values_of(sent)
    assert values["gain/accuracy"] == 0.05
    assert values["test/accuracy"] == 0.9
    params = of_kind(sent, "log_params")[-1]
    assert (params.run, params.values) == (
        "comparison",
        {"params": {"num_bootstrap_samples": "100"}},
    )
    files = {op.values["path"]: op.values["content"] for op in of_kind(sent, "log_artifact")}
    assert sorted(files) == ["comparison.json", "figures/bars.png", "report.html", "report.md"]
    assert files["report.html"] == b"<h1>Yes</h1>"
    assert files["figures/bars.png"].startswith(b"\x89PNG")
    assert [end.run for end in of_kind(sent, "close_run")] == ["student_kd-0", "comparison"]


def test_a_figure_is_logged_as_the_file_that_the_catalog_has_made_of_it(
    begin: Begin, sent: list[Operation], tmp_path: Path
) -> None:
    catalog = empty_catalog()
    catalog["bars"] = MatplotlibDataset(filepath=(tmp_path / "bars.png").as_posix())
    hook = begin(COMPARES, catalog)
    figure = drawn()
    catalog.save("bars", figure)
    hook.after_dataset_saved("bars", figure)
    hook.after_dataset_saved("metrics", metrics())
    hook.after_pipeline_run()
    (logged,) = of_kind(sent, "log_artifact")
    assert logged.values["path"] == "figures/bars.png"
    assert logged.values["content"] == (tmp_path / "bars.png").read_bytes()


def test_a_comparison_alone_finds_its_runs(begin: Begin, sent: list[Operation]) -> None:
    """`kedro run --from-nodes=compare_arms`: the metrics come from disk."""
    hook = begin(COMPARES)
    node = SimpleNamespace(namespace=None, name="compare_arms")
    hook.before_node_run(node, {"params:evaluation": Settings(), "metrics": metrics()})
    hook.after_node_run({"comparison": comparison()})
    hook.after_pipeline_run()
    found = {op.run: op.values["find"] for op in of_kind(sent, "open_run")}
    assert found == {"comparison": False, "student_kd-0": True}
    assert not [op for op in of_kind(sent, "log_metrics") if op.run == "student_kd-0"]


@pytest.mark.parametrize("enabled", [True, False])
def test_nodes_can_take_the_store_and_the_identity_of_the_run(
    begin: Begin, sent: list[Operation], tmp_path: Path, enabled: bool
) -> None:
    catalog = empty_catalog()
    hook = begin(COMPARES, catalog, enabled=enabled, experiment="e")
    hook.after_pipeline_run()
    database = f"sqlite:///{tmp_path / 'mlflow.db'}"
    assert catalog.load("tracking_store") == Store(
        database, "e", (tmp_path / "mlartifacts").as_uri(), max_wait_seconds=60
    )
    identity = catalog.load("run_identity")
    assert identity["env"] == "smoke"
    groups = {op.values["tags"]["kd.group"] for op in of_kind(sent, "open_run")}
    assert groups == ({identity["group"]} if enabled else set())
    again = empty_catalog()
    hook.after_catalog_created(again)
    assert again.load("run_identity")["group"] != identity["group"]


CACHES = Pipeline([Node(same, "images", "soft_target_summary", name="summarise_soft_targets")])
SOFT_TARGETS = {
    "soft_target_summary": pd.DataFrame(
        [{"teacher": "0", "entropy_at_4": 0.5}, {"teacher": "ensemble", "entropy_at_4": 0.75}]
    ),
    "soft_target_confusions": pd.DataFrame([{"class_a": "3", "class_b": "=5"}]),
}


@pytest.mark.parametrize(
    ("pipeline", "run"), [(CACHES, "soft_targets"), (CACHES + COMPARES, "comparison")]
)
def test_soft_targets_are_logged_on_the_page_of_the_whole(
    begin: Begin, sent: list[Operation], pipeline: Pipeline, run: str
) -> None:
    """On the page of the comparison, or, cached alone, on one of their own."""
    hook = begin(pipeline)
    hook.before_node_run(SimpleNamespace(namespace=None, name="summarise_soft_targets"), {})
    hook.after_node_run(SOFT_TARGETS)
    hook.after_dataset_saved("soft_target_entropy_figure", drawn())
    hook.after_pipeline_run()
    (opened,) = of_kind(sent, "open_run")
    assert (opened.run, opened.values["tags"]["kd.role"]) == (run, run)
    (logged,) = of_kind(sent, "log_metrics")
    assert (logged.run, values_of(sent)) == (run, {"soft_targets/entropy_at_4": 0.75})
    files = {op.values["path"]: op for op in of_kind(sent, "log_artifact")}
    assert set(files) == {
        "soft_target_summary.csv",
        "soft_target_confusions.csv",
        "figures/soft_target_entropy_figure.png",
    }
    confusions = files["soft_target_confusions.csv"].values["content"]
    assert confusions == b"class_a,class_b\n3,'=5\n"
    assert {op.run for op in files.values()} == {run}
    assert runs_and_statuses(sent) == {run: "FINISHED"}


def test_the_caches_of_several_namespaces_have_names_of_their_own(
    begin: Begin, sent: list[Operation]
) -> None:
    hook = begin(
        Pipeline([Node(same, "images", "assistant.soft_target_summary", name="summarise")])
    )
    hook.before_node_run(SimpleNamespace(namespace="assistant", name="assistant.summarise"), {})
    hook.after_node_run({"assistant.soft_target_summary": SOFT_TARGETS["soft_target_summary"]})
    hook.after_pipeline_run()
    assert set(values_of(sent)) == {"soft_targets/assistant/entropy_at_4"}
    (file,) = of_kind(sent, "log_artifact")
    assert file.values["path"] == "assistant.soft_target_summary.csv"


EXPORTS = Pipeline([Node(same, None, "export_metrics", name="measure_exports")])
EXPORTED = {
    "role": "student_kd", "replicate": 0, "checkpoint": "f0", "is_best": True, "parameters": 9,
    "accuracy": 0.9, "ram_bytes": float("nan"),
}  # fmt: skip


def test_an_exported_file_is_logged_to_the_run_of_its_model(
    begin: Begin, sent: list[Operation]
) -> None:
    hook = begin(EXPORTS)
    kinds = [("checkpoint", "float32"), ("onnx", "int8")]
    rows = [{**EXPORTED, "target": target, "precision": precision} for target, precision in kinds]
    hook.before_node_run(SimpleNamespace(namespace=None, name="measure_exports"), {})
    hook.after_node_run({"export_metrics": pd.DataFrame(rows)})
    hook.after_pipeline_run()
    assert values_of(sent) == {"export/onnx_int8/accuracy": 0.9}
    assert {o.run for o in of_kind(sent, "log_metrics")} == {"student_kd-0"}


def test_what_int8_costs_and_the_files_that_ship_are_logged(
    begin: Begin, sent: list[Operation], tmp_path: Path
) -> None:
    hook = begin(EXPORTS)
    folder = tmp_path / "student_kd"
    (folder / "int8_aware").mkdir(parents=True)
    (folder / "model.onnx").write_bytes(b"1")
    (folder / "int8_aware" / "model.onnx").write_bytes(b"2")
    cost = {"mean": -0.01, "ci95": [-0.02, 0.0]}
    comparison = {
        "files": [{}],
        "int8": {"onnx int8": {"cost": {"student_kd": cost}, "gain": None,
                 "cost_difference": None}},
    }  # fmt: skip
    checkpoint = SimpleNamespace(fingerprint="f0")
    models = [
        SimpleNamespace(role="student_kd", replicate=r, is_best=r == 1, checkpoint=checkpoint)
        for r in (0, 1)
    ]
    inputs = {"exported_models": models, "export_folder": tmp_path}
    hook.before_node_run(SimpleNamespace(namespace=None, name="publish_exports"), inputs)
    hook.after_node_run({"export_comparison": comparison})
    hook.after_dataset_saved("export_figure", drawn())
    hook.after_node_run({"export_report": "# Exported files", "export_report_page": "<h1>"})
    hook.after_pipeline_run()
    assert values_of(sent) == {
        "export/onnx_int8/cost/student_kd": -0.01,
        "export/onnx_int8/cost/student_kd_ci_low": -0.02,
        "export/onnx_int8/cost/student_kd_ci_high": 0.0,
    }
    files = {(o.run, o.values["path"]) for o in of_kind(sent, "log_artifact")}
    group = of_kind(sent, "open_run")[0].values["tags"]["kd.group"]
    assert files == {
        ("model_export", "export_comparison.json"),
        ("model_export", "export_report.html"),
        ("model_export", "export_report.md"),
        ("model_export", "figures/export_figure.png"),
        ("student_kd-1", f"export/{group}/model.onnx"),
        ("student_kd-1", f"export/{group}/int8_aware/model.onnx"),
    }


def test_a_run_that_exports_nothing_logs_nothing_of_it(begin: Begin, sent: list[Operation]) -> None:
    hook = begin(EXPORTS)
    node = SimpleNamespace(namespace=None, name="publish_exports")
    hook.before_node_run(node, {"exported_models": []})
    nothing = {"files": [], "int8": {}}
    hook.after_node_run({"export_metrics": pd.DataFrame(), "export_comparison": nothing})
    hook.after_node_run({"export_report": "nothing", "export_report_page": "nothing"})
    hook.after_dataset_saved("export_figure", Figure())
    hook.after_pipeline_run()
    assert not of_kind(sent, "log_artifact") + of_kind(sent, "log_metrics")


def test_predictions_and_their_test_set_are_kept_where_students_are_compared(
    begin: Begin,
    sent: list[Operation],
    images: ImageSet,
    examples: pd.DataFrame,
    splits: pd.DataFrame,
) -> None:
    rows = {"role": "student_kd", "replicate": 0, "label": 1, "predicted": 1, "nll": 0.5}
    outputs = {"metrics": metrics(), "predictions": pd.DataFrame([{**rows, "example_id": 7}])}
    inputs = {"images": images, "examples": examples, "splits": splits}
    measures = Pipeline([Node(same, "images", ["predictions", "metrics"], name="evaluate")])
    for pipeline in (COMPARES, measures):
        hook = begin(pipeline)
        hook.before_node_run(SimpleNamespace(namespace=None, name="evaluate"), inputs)
        hook.after_node_run(outputs)
        hook.after_pipeline_run()
    (kept,) = of_kind(sent, "log_artifact")
    assert (kept.run, kept.values["path"]) == ("comparison", "predictions.parquet")
    read = pd.read_parquet(io.BytesIO(kept.values["content"]))
    assert read.to_dict("records") == [{**rows, "example_id": 7}]
    tags = [o.values["tags"] for o in of_kind(sent, "set_tags") if o.run == "comparison"]
    assert {"kd.test_fingerprint": fingerprint_of_test_set(inputs)} in tags


def test_an_error_marks_what_is_open_with_its_reason(begin: Begin, sent: list[Operation]) -> None:
    hook = begin(COMPARES)
    hook.before_node_run(SimpleNamespace(namespace="student_kd", name="student_kd.train"), {})
    events.emit(events.TrainingStarted(0, {}, 1))
    hook.on_pipeline_error(ValueError("the loss became nan\nmore"))
    assert runs_and_statuses(sent) == {"comparison": "FAILED", "student_kd-0": "FAILED"}
    reason = "student_kd.train: ValueError: the loss became nan"
    assert {op.values["tags"]["kd.error"] for op in of_kind(sent, "set_tags")} == {reason}


def test_an_interrupted_run_is_closed_at_exit(
    begin: Begin, sent: list[Operation], monkeypatch: pytest.MonkeyPatch
) -> None:
    registered: list[Callable[[], None]] = []
    monkeypatch.setattr(atexit, "register", registered.append)
    begin(COMPARES)
    (at_exit,) = registered
    at_exit()
    assert runs_and_statuses(sent) == {"comparison": "KILLED"}


TERMINATED = """
import sys, time
from pathlib import Path
from types import SimpleNamespace
from kedro.io import DataCatalog, MemoryDataset
from kedro.pipeline import Node, Pipeline
from kedro_datasets.matplotlib import MatplotlibDataset
from kd_pipeline import events
from kd_pipeline.hooks import mlflow_hook
from kd_pipeline.tracking.sender import Sender

class Printing(Sender):
    def send(self, operation):
        print(operation.kind, operation.run, operation.values.get("status"), flush=True)

mlflow_hook.SendingProcess = Printing
hook = mlflow_hook.MLflowHook()
hook.after_context_created(
    SimpleNamespace(project_path=Path(sys.argv[1]), env="smoke", config_loader={"mlflow": {}})
)
catalog = DataCatalog({name: MemoryDataset() for name in ("tracking_store", "run_identity")})
hook.after_catalog_created(catalog)
train = Pipeline([Node(lambda x: x, "images", "checkpoints", name="train")], namespace="student_kd")
hook.before_pipeline_run({}, train, catalog)
hook.before_node_run(SimpleNamespace(namespace="student_kd", name="student_kd.train"), {})
events.emit(events.TrainingStarted(0, {}, 1))
time.sleep(60)
"""


def test_sigterm_marks_the_open_runs_killed_at_once(tmp_path: Path) -> None:
    command = [sys.executable, "-c", TERMINATED, str(tmp_path)]
    env = {**os.environ, "PYTHONPATH": ":".join(sys.path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("open_run student_kd-0"):
                process.terminate()
                break
        rest = process.stdout.read()
    assert "close_run student_kd-0 KILLED" in rest
    assert process.returncode == 128 + signal.SIGTERM


def test_a_handler_of_sigterm_stays_and_ours_goes_with_the_run(
    begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    def theirs(number: int, frame: object) -> None:
        """Of the program that this runs in."""

    before = signal.getsignal(signal.SIGTERM)
    try:
        for handler in (signal.SIG_DFL, theirs):
            signal.signal(signal.SIGTERM, handler)
            hook = begin(COMPARES)
            during = signal.getsignal(signal.SIGTERM)
            assert (during is theirs) == (handler is theirs)
            assert during is not signal.SIG_DFL
            hook.after_pipeline_run()
            assert signal.getsignal(signal.SIGTERM) is handler
    finally:
        signal.signal(signal.SIGTERM, before)


def test_the_next_run_in_a_notebook_closes_an_interrupted_one(
    begin: Begin, sent: list[Operation]
) -> None:
    catalog = empty_catalog()
    hook = begin(COMPARES, catalog)
    hook.before_pipeline_run({}, TRAINS, catalog)
    assert runs_and_statuses(sent) == {"comparison": "KILLED"}
    run_training(hook)
    hook.after_pipeline_run()
    assert len(of_kind(sent, "log_params")) == 1


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
    with pytest.raises(SettingsError, match=r"did you mean `mlflow.tracking_uri`"):
        begin(TRAINS, tracking_url="http://tracking:5000")


def test_the_link_to_compare_is_logged_at_the_end(
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


def test_environment_variables_are_in_nothing_that_is_sent(
    begin: Begin, sent: list[Operation], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD", "MY_TOKEN"):
        monkeypatch.setenv(name, f"canary of {name}")
    hook = begin(COMPARES)
    run_training(hook)
    node = SimpleNamespace(namespace=None, name="evaluate")
    hook.before_node_run(node, {"params:evaluation": Settings(), "metrics": metrics()})
    hook.after_node_run({"metrics": metrics(), "comparison": comparison(), "report": "# Yes"})
    hook.after_pipeline_run()
    params = [set(op.values["params"]) for op in of_kind(sent, "log_params")]
    assert params == [{"seed"}, {"num_bootstrap_samples"}]
    assert "canary" not in repr(sent)


def test_code_without_git_is_no_reason_to_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "mlflow.source.git.commit" not in describe_process(tmp_path)
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert describe_process(tmp_path)["kd.host"]
