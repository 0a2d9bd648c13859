"""The table of hops: one row per role, and words that own up to a null result."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from kd_pipeline.evaluation.hop_table import (
    make_hop_table,
    markdown_hop_report,
    terminal_hop_table,
)
from kd_pipeline.training.block_settings import DIRECT, LABELS_ALONE


def row(role: str, replicate: int, accuracy: float, **beside: Any) -> dict[str, Any]:
    return {
        "role": role,
        "replicate": replicate,
        "learnt_from": "teacher",
        "architecture": "mlp",
        "model/parameters": 2410,
        "model/macs": 2368,
        "model/size_bytes": 9640,
        "validation_accuracy": 0.9,
        "test/accuracy": accuracy,
        "test/errors": round(1000 * (1 - accuracy)),
        "test/nll": 0.25,
        "test/teacher_agreement": 0.5,
        "cost/train_seconds": 2.0,
        **beside,
    }


@pytest.fixture
def metrics() -> pd.DataFrame:
    return pd.DataFrame(
        [
            row("teacher", 0, 0.97, learnt_from=np.nan, **{"test/teacher_agreement": 1.0}),
            row("assistant", 0, 0.95),
            row("small", 0, 0.90, learnt_from="assistant", **{"test/teacher_agreement": 0.92}),
            row("small", 1, 0.94, learnt_from="assistant", **{"test/teacher_agreement": 0.96}),
            row(LABELS_ALONE, 0, 0.80, learnt_from="labels"),
            row(LABELS_ALONE, 1, 0.80, learnt_from="labels"),
        ]
    )


def difference(mean: float, half_width: float, wins: int = 2) -> dict[str, Any]:
    interval = [mean - half_width, mean + half_width]
    return {"mean": mean, "ci95": interval, "p_value": 0.5, "wins": wins, "replicates": 2}


def comparison(gain: float, half_width: float = 0.02) -> dict[str, Any]:
    found = {"accuracy": difference(gain, half_width), "nll": difference(-gain, half_width)}
    return {
        "last": "small",
        "gains": {f"over_{DIRECT}": found, f"over_{LABELS_ALONE}": found},
        "method": {
            "num_test_examples": 596,
            "num_replicates": 2,
            "num_bootstrap_samples": 500,
            "teacher_measured": True,
            "teacher_data_known": True,
        },
    }


def test_one_row_per_role_in_the_order_of_the_chain(metrics: pd.DataFrame) -> None:
    table = make_hop_table(metrics)
    assert table["role"].tolist() == ["teacher", "assistant", "small", LABELS_ALONE]
    assert table["num_models"].tolist() == [1, 1, 2, 2]
    small = table.set_index("role").loc["small"]
    assert small["learnt_from"] == "assistant"
    assert small["test_accuracy"] == pytest.approx(0.92)
    assert small["test_accuracy_std"] == pytest.approx(0.04 / np.sqrt(2))
    assert small["test_errors"] == pytest.approx(80)
    assert small["agreement_with_its_teacher"] == pytest.approx(0.94)
    assert small["parameters"] == 2410


def test_nothing_is_said_of_agreement_where_there_was_no_teacher(metrics: pd.DataFrame) -> None:
    agreement = make_hop_table(metrics).set_index("role")["agreement_with_its_teacher"]
    assert agreement.isna().tolist() == [True, False, False, True]


def test_the_report_shows_every_role_and_what_it_learnt_from(metrics: pd.DataFrame) -> None:
    report = markdown_hop_report(make_hop_table(metrics), comparison(0.01))
    lines = [line for line in report.splitlines() if line.startswith("| small")]
    assert len(lines) == 1
    cells = [cell.strip() for cell in lines[0].strip("|").split("|")]
    assert cells[:6] == ["small", "assistant", "mlp", "2", "2,410", "2,368"]
    assert cells[6:] == ["90.00", "92.00 ± 2.83", "80", "0.250", "94.00"]
    assert f"| {LABELS_ALONE} | labels |" in report
    assert report.endswith("\n")


@pytest.mark.parametrize(
    ("gain", "said"),
    [
        (0.05, "**The detour helped**: small over learning from the first teacher directly"),
        (-0.05, "**The detour hurt**"),
        (0.01, "**No evidence that the detour helped or hurt**"),
        (-0.01, "**No evidence that the detour helped or hurt**"),
    ],
)
def test_the_detour_is_judged_by_its_interval(
    gain: float, said: str, metrics: pd.DataFrame
) -> None:
    report = markdown_hop_report(make_hop_table(metrics), comparison(gain))
    assert said in report
    assert f"{100 * gain:+.2f} points" in report
    (verdict,) = [line for line in report.splitlines() if "detour" in line and "**" in line]
    assert verdict.startswith(said)


def test_labels_alone_are_judged_apart(metrics: pd.DataFrame) -> None:
    worse = {"accuracy": difference(-0.1, 0.01, wins=0), "nll": difference(0.2, 0.01)}
    told = comparison(0.05)
    told["gains"][f"over_{LABELS_ALONE}"] = worse
    report = markdown_hop_report(make_hop_table(metrics), told)
    assert "**What small learnt from its teacher hurt**" in report
    assert "better in 0 of 2 replicates" in report
    assert "Its NLL is worse: +0.200" in report


def test_a_single_hop_makes_no_detour(metrics: pd.DataFrame) -> None:
    told = comparison(0.05)
    del told["gains"][f"over_{DIRECT}"]
    report = markdown_hop_report(make_hop_table(metrics), told)
    assert "there is no detour" in report
    assert "The detour" not in report


def test_what_it_rests_on_is_said(metrics: pd.DataFrame) -> None:
    table, told = make_hop_table(metrics), comparison(0.05)
    assert "the hops between were trained once" in markdown_hop_report(table, told)
    assert "cannot be verified" not in markdown_hop_report(table, told)
    told["method"] |= {"num_replicates": 1, "teacher_data_known": False}
    report = markdown_hop_report(table, told)
    assert "With one replicate nothing is known of other seeds" in report
    assert "cannot be verified" in report


def test_a_teacher_that_could_not_be_measured_is_spoken_of(metrics: pd.DataFrame) -> None:
    said = "its logits were imported and do not cover the test set"
    told = comparison(0.05)
    assert said not in markdown_hop_report(make_hop_table(metrics), told)
    told["method"] |= {"teacher_measured": False, "teacher_data_known": False}
    table = make_hop_table(metrics[metrics["role"] != "teacher"])
    report = markdown_hop_report(table, told)
    assert "| teacher |" in report  # As what the first hop has learnt from, and nowhere else.
    assert "\n| teacher |" not in report
    assert said in report
    assert "cannot be verified" in report
    assert said in terminal_hop_table(table, told, None)


def test_a_teacher_of_unknown_size_leaves_gaps(metrics: pd.DataFrame) -> None:
    columns = ["model/parameters", "model/macs", "model/size_bytes", "validation_accuracy"]
    metrics = metrics.astype(dict.fromkeys(columns, object))
    metrics.loc[0, columns] = None
    report = markdown_hop_report(make_hop_table(metrics), comparison(0.0))
    assert "| teacher | - | mlp | 1 | - | - | - | 97.00 |" in report


def test_the_terminal_shows_the_same_without_markup(metrics: pd.DataFrame) -> None:
    text = terminal_hop_table(make_hop_table(metrics), comparison(0.05), "data/hop_report.md")
    assert "**" not in text
    assert "The detour helped" in text
    assert text.endswith("Report: data/hop_report.md")
    (line,) = [line for line in text.splitlines() if line.startswith("small ")]
    assert line.split()[1] == "assistant"
    assert "Report" not in terminal_hop_table(make_hop_table(metrics), comparison(0.05), None)
