"""What a run shows that is not on a terminal."""

import logging
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from kedro.io import DataCatalog
from kedro.pipeline import Node, Pipeline

from kd_pipeline import events
from kd_pipeline.hooks.terminal_hook import TerminalHook


def same(data: object) -> object:
    return data


TRAINS = Pipeline([Node(same, "images", "checkpoints", name="train")], namespace="teacher")
PIPELINE = TRAINS + Pipeline([Node(same, "predictions", "comparison", name="compare")])


@pytest.fixture
def hook(caplog: pytest.LogCaptureFixture) -> Iterator[TerminalHook]:
    caplog.set_level(logging.INFO)
    hook = TerminalHook()
    hook.before_pipeline_run(PIPELINE)
    yield hook
    hook.on_pipeline_error()


def logged(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def test_stages_are_numbered_and_each_replicate_has_a_line(
    hook: TerminalHook, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = PIPELINE.nodes
    hook.before_node_run(first)
    metrics = {"train/loss": 0.25, "validation/accuracy": 0.9, "train/examples_per_second": 12345.6}
    events.emit(events.TrainingStarted(3, {}, 2))
    events.emit(events.EpochEnded(3, 1, metrics))
    events.emit(events.TrainingEnded(3, "c0ffee", {"cost/train_seconds": 12.34}))
    hook.before_node_run(second)
    stages = {"teacher.train": "teacher: train", "compare": "compare"}
    assert logged(caplog) == [
        f"[1/2] {stages[first.name]}",
        "  replicate 3: train loss 0.25, validation accuracy 0.9, 12,346 examples/s, 12.3 s",
        f"[2/2] {stages[second.name]}",
    ]


def test_the_rate_beside_the_seconds_is_that_of_the_whole_training(
    hook: TerminalHook, caplog: pytest.LogCaptureFixture
) -> None:
    """Two epochs of 600 examples: 6 s and 2 s are 150 examples/s, whatever the last one's rate."""
    events.emit(events.TrainingStarted(0, {}, 2))
    for epoch, rate in ((1, 100.0), (2, 300.0)):
        events.emit(events.EpochEnded(0, epoch, {"train/examples_per_second": rate}))
    events.emit(events.TrainingEnded(0, "c0ffee", {"cost/train_seconds": 8.0}))
    assert logged(caplog)[-1] == "  replicate 0: 150 examples/s, 8.0 s"


def test_replicates_that_train_together_have_one_bar_and_a_line_each(
    hook: TerminalHook, caplog: pytest.LogCaptureFixture
) -> None:
    for replicate in range(2):
        events.emit(events.TrainingStarted(replicate, {}, 2))
    assert hook._progress is not None
    assert hook._progress.description == "replicates 0 to 1"
    for replicate, loss in enumerate((0.5, 0.25)):
        events.emit(events.EpochEnded(replicate, 1, {"train/loss": loss}))
    for replicate in range(2):
        assert hook._progress is not None
        events.emit(events.TrainingEnded(replicate, "c0ffee"))
    assert hook._progress is None
    assert logged(caplog) == [
        "  replicate 0: train loss 0.5",
        "  replicate 1: train loss 0.25",
    ]


def test_a_loop_that_ends_is_no_longer_shown(hook: TerminalHook) -> None:
    events.emit(events.Progress("decode images", 1, 2, "images"))
    assert hook._progress is not None
    events.emit(events.Progress("decode images", 2, 2, "images"))
    assert hook._progress is None


def test_the_table_of_arms_stays_on_the_screen(
    hook: TerminalHook,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    def table(comparison: dict[str, Any], report_path: str | None) -> str:
        return f"table of {comparison['arms']}, report in {report_path}"

    monkeypatch.setattr("kd_pipeline.evaluation.terminal.arms_table", table)
    config = {"report_page": {"type": "text.TextDataset", "filepath": "data/report.html"}}
    hook.after_node_run({"comparison": {"arms": "two arms"}})
    hook.after_node_run({"report_page": "words"})
    hook.after_pipeline_run(DataCatalog.from_config(config))
    out = capsys.readouterr().out.strip()
    assert out.startswith("table of two arms, report in ")
    assert out.endswith("data/report.html")
    assert logged(caplog)[-1].startswith("Done in ")


def test_a_run_without_comparison_has_no_table(
    hook: TerminalHook, capsys: pytest.CaptureFixture[str]
) -> None:
    hook.after_pipeline_run(DataCatalog({}))
    assert capsys.readouterr().out == ""


def test_a_failure_names_its_stage_and_no_event_is_shown_after(
    hook: TerminalHook, caplog: pytest.LogCaptureFixture
) -> None:
    hook.before_node_run(SimpleNamespace(name="teacher.train", namespace="teacher"))
    events.emit(events.TrainingStarted(0, {}, 2))
    hook.on_node_error()
    hook.on_pipeline_error()
    assert logged(caplog)[-1].endswith("/2] teacher: train failed")
    events.emit(events.TrainingStarted(0, {}, 2))
    assert hook._progress is None


def test_fine_tuning_for_int8_is_shown_beside_the_training_in_float(
    hook: TerminalHook, caplog: pytest.LogCaptureFixture
) -> None:
    events.emit(events.TrainingStarted(0, {}, 2))
    events.emit(events.EpochEnded(0, 1, {"validation/accuracy": 0.9}))
    events.emit(events.EpochEnded(0, 2, {"quantisation/validation_accuracy": 0.875}))
    events.emit(events.TrainingEnded(0, "fingerprint", {}))
    shown = "  replicate 0: validation accuracy 0.9, int8 validation accuracy 0.875"
    assert logged(caplog)[-1] == shown
