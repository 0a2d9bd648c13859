"""Figures of a sweep: that each shows what the table has."""

import numpy as np
import pandas as pd
import pytest

from kd_pipeline.evaluation.sweep_figures import history_figure, importance_figure, slice_figure

METRIC = "validation/accuracy"


@pytest.fixture
def trials() -> pd.DataFrame:
    kd = pd.DataFrame(
        {
            "arm": "student_kd",
            "state": ["complete", "pruned", "complete", "complete"],
            METRIC: [0.5, 0.9, 0.4, 0.7],
            "lr": [0.1, 0.01, 0.001, 0.02],
            "loss": ["kl", "dist", "kl", "kl"],
        }
    )
    baseline = kd.drop(columns="loss").assign(arm="student_baseline")
    return pd.concat([kd, baseline], ignore_index=True)


@pytest.mark.parametrize(
    ("maximised", "best"), [(True, [0.5, 0.5, 0.5, 0.7]), (False, [0.5, 0.5, 0.4, 0.4])]
)
def test_the_history_follows_the_best_complete_trial(
    trials: pd.DataFrame, maximised: bool, best: list[float]
) -> None:
    (axes,) = history_figure(trials, METRIC, maximised=maximised).axes
    lines = [line for line in axes.lines if line.get_linestyle() == "-"]
    assert len(lines) == 2
    for line in lines:
        np.testing.assert_allclose(line.get_ydata(), best)


def test_importances_are_bars_and_a_parameter_that_an_arm_lacks_is_empty() -> None:
    shares = {"student_kd": {"lr": 0.7, "temperature": 0.3}, "student_baseline": {"lr": 1.0}}
    (axes,) = importance_figure(shares).axes
    widths = [[bar.get_width() for bar in bars] for bars in axes.containers]
    assert widths == [[0.7, 0.3], [1.0, 0.0]]
    importance_figure({"student_kd": {}})


def test_a_slice_per_parameter_of_numbers_or_names(trials: pd.DataFrame) -> None:
    panels = slice_figure(trials, METRIC, ["lr", "loss", "absent"], log=["lr"]).axes
    assert [axes.get_xlabel() for axes in panels] == ["lr", "loss"]
    assert [axes.get_xscale() for axes in panels] == ["log", "linear"]
    # Filled and hollow dots, of two arms and of the one that has a loss.
    assert [len(axes.lines) for axes in panels] == [4, 2]
