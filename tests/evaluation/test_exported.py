"""What int8 costs, worked by hand: pairs of replicates, examples and precisions."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from kd_pipeline.data.dataset import LabelledImages
from kd_pipeline.evaluation.export_figures import export_figure
from kd_pipeline.evaluation.export_report import export_report, export_section, sentences, table
from kd_pipeline.evaluation.exported import compare_files, measure_files
from kd_pipeline.evaluation.settings import EvaluationParams

PARAMS = EvaluationParams(num_bootstrap_samples=200)
LEARNT_FROM = {"student_kd": "teacher", "student_baseline": "labels"}
FLOAT, INT8 = ("checkpoint", "float32"), ("onnx", "int8")

Wrong = Mapping[tuple[str, tuple[str, str]], Sequence[int]]


def logits_of(labels: torch.Tensor, wrong: int) -> torch.Tensor:
    """Right but for the first `wrong` examples."""
    predicted = labels.clone()
    predicted[:wrong] = (predicted[:wrong] + 1) % 3
    return 4.0 * torch.nn.functional.one_hot(predicted, 3).float()


def files_of(data: LabelledImages, wrong: Wrong) -> list[tuple[dict[str, Any], torch.Tensor]]:
    """Number of wrong examples by role and kind, a number per replicate."""
    labels = data.labels_of(data.ids("test"))
    return [
        (
            {
                "role": role,
                "replicate": replicate,
                "target": target,
                "precision": precision,
                "checkpoint": "c",
                "is_best": replicate == 1,
                "size_bytes": 100 + replicate,
                "latency_p50_ms_batch_1_threads_1": 0.5 if replicate == 1 else np.nan,
            },
            logits_of(labels, number),
        )
        for (role, (target, precision)), numbers in wrong.items()
        for replicate, number in enumerate(numbers)
    ]


def compared(data: LabelledImages, wrong: Wrong) -> dict[str, Any]:
    return compare_files(*measure_files(data, files_of(data, wrong), PARAMS), PARAMS, LEARNT_FROM)


@pytest.fixture(scope="module")
def comparison(data: LabelledImages) -> dict[str, Any]:
    """Int8 costs the distilled student 3 and 5 examples, the baseline 1 and 1."""
    return compared(
        data,
        {
            ("student_baseline", FLOAT): [6, 8],
            ("student_baseline", INT8): [7, 9],
            ("student_kd", FLOAT): [2, 2],
            ("student_kd", INT8): [5, 7],
        },
    )


def test_the_cost_of_int8_is_paired_with_the_checkpoint(
    data: LabelledImages, comparison: dict[str, Any]
) -> None:
    n = len(data.ids("test"))
    cost = comparison["int8"]["onnx int8"]["cost"]
    assert cost["student_baseline"]["mean"] == pytest.approx(-1 / n)
    assert cost["student_kd"]["mean"] == pytest.approx(-4 / n)
    assert cost["student_kd"]["wins"] == 0


def test_the_difference_of_costs_and_the_gain_in_int8(
    data: LabelledImages, comparison: dict[str, Any]
) -> None:
    n = len(data.ids("test"))
    int8 = comparison["int8"]["onnx int8"]
    assert int8["cost_difference"]["mean"] == pytest.approx(-3 / n)
    assert int8["gain"]["mean"] == pytest.approx(2 / n)
    assert comparison["float32_gain"]["mean"] == pytest.approx(5 / n)
    assert comparison["distilled"] == "student_kd"


def test_equal_losses_of_the_same_examples_have_no_interval(data: LabelledImages) -> None:
    """Where int8 turns the same examples wrong in both, no difference is uncertain."""
    result = compared(
        data,
        {
            ("student_baseline", FLOAT): [0, 0],
            ("student_baseline", INT8): [3, 3],
            ("student_kd", FLOAT): [0, 0],
            ("student_kd", INT8): [3, 3],
        },
    )
    difference = result["int8"]["onnx int8"]["cost_difference"]
    assert difference["ci95"] == [0, 0]
    assert result["int8"]["onnx int8"]["cost"]["student_kd"]["ci95"][0] < 0


def test_files_are_summarised_over_replicates_and_sized_by_the_best(
    data: LabelledImages, comparison: dict[str, Any]
) -> None:
    n = len(data.ids("test"))
    file = next(f for f in comparison["files"] if f["role"] == "student_kd" and f["size_bytes"])
    int8 = comparison["files"][3]
    assert (int8["role"], int8["precision"]) == ("student_kd", "int8")
    assert int8["accuracy"]["values"] == pytest.approx([1 - 5 / n, 1 - 7 / n])
    assert (int8["size_bytes"], int8["best_replicate"], int8["position_of_best"]) == (101, 1, 1)
    assert int8["latency_p50_ms_batch_1_threads_1"] == 0.5
    assert file["errors"]["mean"] == 2


def test_without_a_baseline_there_is_a_cost_and_no_gain(data: LabelledImages) -> None:
    result = compared(data, {("student_kd", FLOAT): [2, 2], ("student_kd", INT8): [3, 3]})
    int8 = result["int8"]["onnx int8"]
    assert (int8["gain"], int8["cost_difference"], result["float32_gain"]) == (None, None, None)
    assert int8["cost"]["student_kd"]["mean"] < 0


def test_metrics_are_those_of_logits_on_the_test_rows(data: LabelledImages) -> None:
    files = files_of(data, {("student_kd", INT8): [3]})
    predictions, metrics = measure_files(data, files, PARAMS)
    n = len(data.ids("test"))
    assert predictions["example_id"].tolist() == data.ids("test").tolist()
    assert metrics.loc[0, "errors"] == 3
    assert metrics.loc[0, "accuracy"] == pytest.approx(1 - 3 / n)
    right, wrong = -4 + np.log(np.exp(4) + 2), np.log(np.exp(4) + 2)
    assert metrics.loc[0, "nll"] == pytest.approx((right * (n - 3) + wrong * 3) / n)


def test_nothing_exported_is_nothing_measured_compared_or_reported(data: LabelledImages) -> None:
    predictions, metrics = measure_files(data, [], PARAMS)
    result = compare_files(predictions, metrics, PARAMS, {})
    assert result["files"] == []
    assert export_section(result) == ""
    assert "`model_export.enabled` is false" in export_report(result)
    assert export_figure(result).axes == []


def test_best_replicates_of_other_seeds_are_no_pair(data: LabelledImages) -> None:
    wrong = {(s, k): [2, 3] for s in ("student_kd", "student_baseline") for k in (FLOAT, INT8)}
    chosen = {"student_kd": 1, "student_baseline": 0}
    files = [f for f in files_of(data, wrong) if f[0]["replicate"] == chosen[f[0]["role"]]]
    for columns, _ in files:
        columns["is_best"] = True
    result = compare_files(*measure_files(data, files, PARAMS), PARAMS, LEARNT_FROM)
    int8 = result["int8"]["onnx int8"]
    assert (int8["gain"], int8["cost_difference"], result["float32_gain"]) == (None, None, None)
    assert "`model_export.replicates: all` compares" in "\n".join(sentences(result))


def test_a_student_that_teaches_is_not_the_distilled_one(data: LabelledImages) -> None:
    names = ("assistant", "student_assisted", "student_baseline")
    files = files_of(data, {(name, kind): [1, 2] for name in names for kind in (FLOAT, INT8)})
    learnt_from = {"assistant": "teacher", "student_assisted": "assistant"}
    frames = measure_files(data, files, PARAMS)
    assert compare_files(*frames, PARAMS, learnt_from)["distilled"] == "student_assisted"


def test_the_report_says_what_int8_costs_which_student(comparison: dict[str, Any]) -> None:
    text = "\n".join(sentences(comparison))
    assert "From float32 to int8 (onnx), accuracy changes by, in points: hard labels -" in text
    assert "distilled -11.11 (" in text
    assert "in float32 the gain" in text.lower()
    difference = comparison["int8"]["onnx int8"]["cost_difference"]
    for interval, answer in (
        ([-2.0, -1.0], "costs the distilled student more than the baseline"),
        ([1.0, 2.0], "costs the distilled student less than the baseline"),
        ([-1.0, 1.0], "is not shown"),
    ):
        changed = {**difference, "ci95": interval, "smallest_detectable": 0.02}
        found = {**comparison, "int8": {"onnx int8": {**comparison["int8"]["onnx int8"],
                 "cost_difference": changed}}}  # fmt: skip
        text = "\n".join(sentences(found))
        assert answer in text
        assert ("could have shown is 2.00 points" in text) is (answer == "is not shown")


def test_the_table_has_a_row_per_file(comparison: dict[str, Any]) -> None:
    rows = table(comparison).splitlines()
    assert len(rows) == 2 + 4
    assert rows[-1].startswith("| distilled (student_kd) | onnx, int8 | 83.33 ± ")
    assert "| 101 |" in rows[-1]


def test_the_figure_draws_every_exported_file(comparison: dict[str, Any]) -> None:
    figure = export_figure(comparison)
    left, right = figure.axes
    assert len(left.containers) == len(right.containers) == 2
    assert {text.get_text() for text in figure.legends[0].get_texts()} == {
        "hard labels (student_baseline)",
        "distilled (student_kd)",
        "onnx int8",
    }


def test_replicates_are_paired_by_number_whatever_their_order(data: LabelledImages) -> None:
    files = files_of(data, {("student_kd", FLOAT): [0, 9], ("student_kd", INT8): [1, 10]})
    shuffled = [files[1], files[0], files[2], files[3]]
    frames = measure_files(data, shuffled, PARAMS)
    cost = compare_files(*frames, PARAMS, LEARNT_FROM)["int8"]["onnx int8"]["cost"]["student_kd"]
    assert cost["mean"] == pytest.approx(-1 / len(data.ids("test")))
    assert isinstance(frames[0], pd.DataFrame)
