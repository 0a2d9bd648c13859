"""The runs of a Kedro run as a person finds them in MLflow."""

import base64
import json
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote

import pytest

from kd_pipeline.events import EpochEnded, TrainingEnded, TrainingStarted, TrialEnded
from kd_pipeline.tracking.operations import DatasetFacts
from kd_pipeline.tracking.runs import RESPLITS, RunBook, new_group
from kd_pipeline.tracking.sender import Sender
from kd_pipeline.tracking.store import Store

BeginBook = Callable[..., RunBook]
FetchRuns = Callable[[], dict[str, Any]]

DIGITS = DatasetFacts("digits", "0123", "training", "images", {})
TEST = DatasetFacts("digits-test", "0123", "evaluation", "images", {})
GAIN = {
    "accuracy": {
        "mean": 0.05,
        "ci95": [0.04, 0.06],
        "p_value": 0.01,
        "p_value_holm": 0.03,
        "smallest_detectable": 0.02,
    },
    "nll": {"mean": -0.2},
    "gap_recovered": 0.8,
}
COMPARED = {
    "gains": {"student_kd": GAIN},
    "distilled": "student_kd",
    "costs": {"student_kd": {"total_seconds": 12.5}},
}


def start(book: RunBook, role: str, replicate: int, temperature: float = 1.0) -> None:
    parameters = {
        "seed": 0,
        "training": {"optimiser": {"name": "AdamW", "arguments": {"lr": 1e-3}}, "num_epochs": 2},
        "temperature": temperature,
    }
    book.training_started(role, TrainingStarted(replicate, parameters, 2), [DIGITS])


def train(book: RunBook, role: str, replicate: int, temperature: float = 1.0) -> str:
    start(book, role, replicate, temperature)
    for epoch in (1, 2):
        book.epoch_ended(role, EpochEnded(replicate, epoch, {"train/loss": 1 / epoch}))
    fingerprint = f"fingerprint of {role} {replicate}"
    costs = {"cost/train_seconds": 1.5}
    book.training_ended(role, TrainingEnded(replicate, fingerprint, costs))
    return fingerprint


def row(role: str, replicate: int, accuracy: float | None = 0.9) -> dict[str, Any]:
    return {
        "role": role,
        "replicate": replicate,
        "checkpoint": f"fingerprint of {role} {replicate}",
        "test/accuracy": accuracy,
    }


def test_a_whole_run_is_flat_and_alike_for_every_student(
    begin_book: BeginBook, fetch_runs: FetchRuns, store: Store
) -> None:
    book = begin_book("monday")
    book.open_comparison()
    for role, temperature in (("student_baseline", 1.0), ("student_kd", 4.0)):
        for replicate in (0, 1):
            train(book, role, replicate, temperature)
    rows = [row(role, n) for role in ("student_baseline", "student_kd") for n in (0, 1)]
    book.log_test_metrics(rows, [TEST])
    book.log_comparison(COMPARED, rows=rows, settings={"num_bootstrap_samples": 100})
    book.log_report("# It helped")
    book.end("FINISHED")
    runs = fetch_runs()
    comparison = runs.pop("comparison")
    assert sorted(runs) == [
        "student_baseline-0",
        "student_baseline-1",
        "student_kd-0",
        "student_kd-1",
    ]
    assert len({tuple(sorted(run.data.params)) for run in runs.values()}) == 1
    for run in (comparison, *runs.values()):
        assert "mlflow.parentRunId" not in run.data.tags
        assert run.data.tags["kd.group"] == "monday"
        assert run.data.tags["kd.pipeline"] == "distill"
        assert run.info.status == "FINISHED"
    run = runs["student_kd-1"]
    assert run.data.params["temperature"] == "4.0"
    assert run.data.params["optimiser.arguments.lr"] == "0.001"
    assert run.data.tags["kd.role"] == "student_kd"
    assert run.data.tags["kd.replicate"] == "1"
    assert run.data.tags["kd.checkpoint"] == "fingerprint of student_kd 1"
    expected = {"train/loss": 0.5, "cost/train_seconds": 1.5, "test/accuracy": 0.9}
    assert run.data.metrics == expected
    contexts = sorted(used.tags[0].value for used in run.inputs.dataset_inputs)
    assert contexts == ["evaluation", "training"]
    assert comparison.data.params == {"num_bootstrap_samples": "100"}
    assert comparison.data.metrics["gain/accuracy_ci_low"] == 0.04
    assert comparison.data.metrics["gain/p_value_holm"] == 0.03
    assert comparison.data.metrics["cost/student_kd/total_seconds"] == 12.5
    assert comparison.data.tags["mlflow.note.content"] == "# It helped"
    folder = Path(comparison.info.artifact_uri.removeprefix("file://"))
    assert json.loads((folder / "comparison.json").read_text()) == COMPARED
    assert (folder / "report.md").read_text() == "# It helped"
    ids = [run.info.run_id for _, run in sorted(runs.items())]
    assert comparison.data.tags["kd.compared_runs"].split(",") == ids
    assert unquote(str(book.link())).endswith("&viewStateShareKey=monday")
    for key in ("monday", "latest"):
        view = saved_view(store, key)
        assert view["searchFilter"] == "tags.kd.group = 'monday' AND tags.kd.role != 'comparison'"


def test_models_of_several_groups_are_shown_by_their_ids(
    begin_book: BeginBook, fetch_runs: FetchRuns, store: Store
) -> None:
    first = begin_book("monday")
    train(first, "student_baseline", 0)
    first.end("FINISHED")
    book = begin_book("tuesday")
    book.open_comparison()
    train(book, "student_kd", 0)
    book.log_test_metrics([row("student_baseline", 0), row("student_kd", 0)], [TEST])
    book.end("FINISHED")
    shown = saved_view(store, "tuesday")["searchFilter"]
    runs = fetch_runs()
    for name in ("student_baseline-0", "student_kd-0"):
        assert runs[name].info.run_id in shown


def saved_view(store: Store, key: str) -> dict[str, Any]:
    import mlflow

    experiment = mlflow.MlflowClient(store.uri).get_experiment_by_name(store.experiment)
    return unpack(experiment.tags[f"mlflow.sharedViewState.{key}"])


def unpack(tag: str) -> dict[str, Any]:
    packed = json.loads(tag)["state"].removeprefix("deflate;")
    state: dict[str, Any] = json.loads(zlib.decompress(base64.b64decode(packed)))
    return state


def test_a_failure_is_seen_in_what_was_open_and_only_there(
    begin_book: BeginBook, fetch_runs: FetchRuns
) -> None:
    book = begin_book("monday")
    book.open_comparison()
    train(book, "teacher", 0)
    start(book, "student_kd", 0)
    book.end("FAILED", error="train_student: TrainingDivergedError: the loss became nan" * 20)
    runs = fetch_runs()
    statuses = {name: run.info.status for name, run in runs.items()}
    assert statuses == {"comparison": "FAILED", "teacher-0": "FINISHED", "student_kd-0": "FAILED"}
    assert len(runs["student_kd-0"].data.tags["kd.error"]) == 500
    assert "kd.error" not in runs["teacher-0"].data.tags


def test_evaluation_alone_finds_its_runs_and_has_a_group_of_its_own(
    begin_book: BeginBook, fetch_runs: FetchRuns, store: Store
) -> None:
    first = begin_book("monday")
    train(first, "student_kd", 0)
    train(first, "student_baseline", 0)
    first.end("FINISHED")
    later = begin_book("tuesday")
    later.open_comparison()
    rows = [row("student_kd", 0), row("student_baseline", 0)]
    later.log_test_metrics(rows, [TEST])
    later.log_comparison(COMPARED, rows=rows, settings={})
    later.end("FINISHED")
    runs = fetch_runs()
    groups = {name: run.data.tags["kd.group"] for name, run in runs.items()}
    assert groups == {
        "student_kd-0": "monday",
        "student_baseline-0": "monday",
        "comparison": "tuesday",
    }
    assert runs["student_kd-0"].data.metrics["test/accuracy"] == 0.9
    ids = [runs[name].info.run_id for name in ("student_kd-0", "student_baseline-0")]
    assert runs["comparison"].data.tags["kd.compared_runs"].split(",") == ids
    shown = saved_view(store, "tuesday")["searchFilter"]
    assert all(run_id in shown for run_id in ids)


def test_a_given_teacher_gets_a_run_with_what_was_measured(
    begin_book: BeginBook, fetch_runs: FetchRuns
) -> None:
    book = begin_book("monday")
    book.log_test_metrics([row("teacher", 0), row("student_kd", 0, None)], [TEST])
    book.end("FINISHED")
    runs = fetch_runs()
    assert runs["teacher-0"].data.metrics == {"test/accuracy": 0.9}
    assert runs["teacher-0"].info.status == "FINISHED"
    assert runs["student_kd-0"].data.metrics == {}


def test_soft_targets_that_nothing_is_compared_with_have_a_run_of_their_own(
    begin_book: BeginBook, fetch_runs: FetchRuns
) -> None:
    book = begin_book("monday")
    book.log_soft_targets({"teacher": "0", "fingerprint": "77", "entropy_at_4": 0.5})
    book.log_file("soft_target_summary.csv", b"teacher,entropy_at_4\n0,0.5\n")
    book.end("FINISHED")
    (run,) = fetch_runs().values()
    assert (run.info.run_name, run.info.status) == ("soft_targets", "FINISHED")
    assert run.data.tags["kd.role"] == "soft_targets"
    assert run.data.metrics == {"soft_targets/entropy_at_4": 0.5}
    folder = Path(run.info.artifact_uri.removeprefix("file://"))
    assert (folder / "soft_target_summary.csv").read_bytes().endswith(b"0,0.5\n")


@pytest.mark.parametrize(("models", "uploaded"), [("best", [1]), ("all", [0, 1, 2]), ("none", [])])
def test_the_setting_names_the_models_that_are_uploaded(
    begin_book: BeginBook, monkeypatch: pytest.MonkeyPatch, models: str, uploaded: list[int]
) -> None:
    logged: list[str] = []
    monkeypatch.setattr(
        Sender, "send", lambda self, sent: sent.kind == "log_model" and logged.append(sent.run)
    )
    book = begin_book("monday", models=models)
    for replicate, accuracy in enumerate((0.5, 0.75, 0.75)):  # Of equal ones the first.
        start(book, "student_kd", replicate)
        for epoch, shown in ((1, 0.99), (2, accuracy)):
            metrics = {"validation/accuracy": shown, "train/accuracy": 1 - accuracy}
            book.epoch_ended("student_kd", EpochEnded(replicate, epoch, metrics))
        book.training_ended("student_kd", TrainingEnded(replicate, f"f{replicate}", {}))
    book.log_models("student_kd", [SimpleNamespace(fingerprint=f"f{n}") for n in range(3)])
    book.log_models("given", [SimpleNamespace(fingerprint="g")])
    book.end("FINISHED")
    expected = [f"student_kd-{n}" for n in uploaded] + ["given-0"] * bool(uploaded)
    assert logged == expected


def test_an_unreachable_server_costs_a_warning_and_little_time(
    begin_book: BeginBook, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    begun = time.monotonic()
    book = begin_book("monday", to=Store("http://127.0.0.1:9", "e", None))
    book.open_comparison()
    for replicate in range(5):
        train(book, "student_kd", replicate)
    book.log_test_metrics([row("student_kd", replicate) for replicate in range(5)], [TEST])
    book.end("FINISHED")
    assert book.link() is None
    assert time.monotonic() - begun < 15
    assert len([r for r in caplog.records if r.name.startswith("kd_pipeline")]) == 1
    assert (tmp_path / "unsent-monday.jsonl").read_text().count('"kind": "close_run"') == 6


def test_no_password_reaches_a_tag_a_file_or_a_message(
    begin_book: BeginBook, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store("http://ada:s3cret@127.0.0.1:9", "e", None)  # As if it had not been split.
    book = begin_book("monday", to=store)
    book.open_comparison()
    book.end("FAILED", error=f"fetch: OSError: {store.uri} is away")
    assert "http://127.0.0.1:9 cannot be reached" in caplog.text
    assert (
        "fetch: OSError: http://127.0.0.1:9 is away"
        in (tmp_path / "unsent-monday.jsonl").read_text()
    )
    everything = caplog.text + (tmp_path / "unsent-monday.jsonl").read_text()
    assert "s3cret" not in everything


def test_groups_are_unique_within_a_second() -> None:
    assert len({new_group() for _ in range(5)}) == 5


def test_a_trial_of_a_sweep_is_a_flat_run_of_its_own(
    begin_book: BeginBook, fetch_runs: FetchRuns
) -> None:
    book = begin_book("monday")
    parameters = {"training": {"optimiser": {"arguments": {"lr": 1e-3}}}, "temperature": 2.0}
    curves = {1: {"validation/accuracy": 0.5}, 2: {"validation/accuracy": 0.75}}
    costs = {"cost/train_seconds": 30.0}
    for number, state in enumerate(("complete", "pruned")):
        trial = TrialEnded("s1", number, state, parameters, curves, costs)
        book.log_trial("student_kd", trial, [DIGITS])
    book.end("FINISHED")
    link = book.link()
    assert link is not None
    runs = fetch_runs()
    assert sorted(runs) == ["student_kd-trial-0", "student_kd-trial-1"]
    run = runs["student_kd-trial-1"]
    assert run.info.run_id in link
    wanted = {"role": "student_kd", "sweep": "s1", "trial": "1", "trial_state": "pruned"}
    assert {name: run.data.tags[f"kd.{name}"] for name in wanted} == wanted
    assert run.data.params == {"optimiser.arguments.lr": "0.001", "temperature": "2.0"}
    assert run.data.metrics == {"validation/accuracy": 0.75, "cost/train_seconds": 30.0}
    assert run.info.status == "FINISHED"
    assert run.info.end_time - run.info.start_time >= 29_000


def test_the_combination_of_resplits_is_a_flat_run_of_its_own(
    begin_book: BeginBook, fetch_runs: FetchRuns
) -> None:
    book = begin_book("monday", stage=RESPLITS)
    gain = {key: value for key, value in GAIN.items() if key != "gap_recovered"}
    groups = ["g1", "g2"]
    book.log_resplits({"groups": groups, "gains": {"student_kd": gain}, "distilled": "student_kd"})
    book.log_file("resplits.md", b"# Does distillation help under other splits too?")
    book.end("FINISHED")
    runs = fetch_runs()
    assert set(runs) == {"resplits"}
    run = runs["resplits"]
    assert run.info.status == "FINISHED"
    assert run.data.metrics["gain/accuracy_ci_low"] == 0.04
    assert run.data.metrics["gain/p_value_holm"] == 0.03
    assert run.data.tags["kd.compared_groups"] == "g1,g2"
    assert run.data.tags["kd.role"] == "resplits"
