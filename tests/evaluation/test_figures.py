"""Figures draw what was measured, for few and many classes, without pyplot."""

import io
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from kd_pipeline.evaluation import figures

Draw = Callable[..., Any]


def class_gain(result: Any) -> Figure:
    return figures.class_gain_figure(result.predictions, result.comparison, result.class_names)


def all_figures(result: Any) -> dict[str, Figure]:
    return {
        "accuracy": figures.accuracy_figure(result.comparison),
        "reliability": figures.reliability_figure(result.predictions),
        "confusion": figures.confusion_figure(result.predictions, result.class_names),
        "class_gain": class_gain(result),
    }


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_classes": 100, "num_examples": 800},
        {"num_classes": 2, "num_examples": 30, "num_replicates": 1},
        {"accuracy": {"teacher": 0.99, "student_baseline": 0.9}},
        {"accuracy": {"teacher": 0.99, "student_baseline": 0.9, "a": 0.9, "b": 0.8}},
        {"accuracy": {"a": 0.9, "b": 0.9, "student_baseline": 0.9}, "learnt_from": {"b": "a"}},
    ],
)
def test_every_figure_renders(draw: Draw, changes: dict[str, Any]) -> None:
    for figure in all_figures(draw(**changes)).values():
        buffer = io.BytesIO()
        figure.savefig(buffer)
        assert buffer.getvalue().startswith(b"\x89PNG")


def test_no_global_state_is_touched(result: Any) -> None:
    all_figures(result)
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or not pyplot.get_fignums()


def test_every_replicate_and_the_teacher_are_drawn(result: Any) -> None:
    left, right = figures.accuracy_figure(result.comparison).axes
    drawn = [sorted(line.get_xdata()) for line in left.lines if line.get_marker() == "o"]
    for arm, spreads in result.comparison["arms"].items():
        assert sorted(100 * np.array(spreads["accuracy"]["values"])) in drawn, arm
    assert [text.get_text() for text in left.texts][-1].startswith("teacher 99.")
    intervals = [list(line.get_xdata()) for line in right.lines]
    gain = result.comparison["gains"]["student_kd"]["accuracy"]
    assert [100 * bound for bound in gain["ci95"]] in intervals


def test_confusion_shares_of_a_class_add_up(result: Any) -> None:
    figure = figures.confusion_figure(result.predictions, result.class_names)
    panels = [axes for axes in figure.axes if axes.images]
    assert [axes.get_title() for axes in panels][:2] == ["teacher", "distilled (student_kd)"]
    assert len(panels) == 5
    shares = np.asarray(panels[1].images[0].get_array()) ** 2
    np.testing.assert_allclose(shares.sum(axis=1), 1)
    rows = result.predictions.query("role == 'student_kd' and label == 3")
    assert shares[3, 3] == pytest.approx((rows["predicted"] == 3).mean())


def test_gain_per_class_is_a_difference_of_recalls_sorted(result: Any) -> None:
    (axes,) = class_gain(result).axes
    points = next(line for line in axes.lines if "student_kd" in str(line.get_label()))
    gains = list(points.get_xdata())
    assert gains == sorted(gains, reverse=True)
    first = axes.get_yticklabels()[0].get_text()
    rows = result.predictions[result.predictions["label"] == result.class_names.index(first)]
    recall = (rows["predicted"] == rows["label"]).groupby(rows["role"]).mean()
    assert gains[0] == pytest.approx(100 * (recall["student_kd"] - recall["student_baseline"]))


def test_a_student_between_gains_nothing_and_keeps_its_colours(draw: Draw) -> None:
    shares = {"generation_1": 0.9, "generation_2": 0.9, "student_baseline": 0.9}
    drawn = draw(shares, learnt_from={"generation_2": "generation_1"})
    (axes,) = class_gain(drawn).axes
    (line,) = [line for line in axes.lines if line.get_marker() != "None"]
    assert line.get_label() == "generation_2"
    left, right = figures.accuracy_figure(drawn.comparison).axes
    dots = [dots.get_color() for dots in left.lines if dots.get_marker() == "o"]
    assert line.get_color() == dots[1] != dots[0]
    assert len([line for line in right.lines if line.get_marker() == "D"]) == 1


def test_of_many_classes_the_ends_are_drawn_and_said(draw: Draw) -> None:
    many = draw(num_classes=100, num_examples=800)
    (axes,) = class_gain(many).axes
    assert len(axes.get_yticks()) == 30
    assert "of 100" in axes.get_title(loc="left")


def test_a_class_without_test_examples_is_left_out(result: Any) -> None:
    predictions = result.predictions[result.predictions["label"] != 3]
    (axes,) = class_gain(result._replace(predictions=predictions)).axes
    assert "class 3" not in [text.get_text() for text in axes.get_yticklabels()]
    figures.confusion_figure(predictions, result.class_names).savefig(io.BytesIO())


def test_reliability_pools_replicates_and_leaves_out_bins_of_a_few(result: Any) -> None:
    upper, lower = figures.reliability_figure(result.predictions).axes
    shares = {str(line.get_color()): line.get_ydata() for line in lower.lines}
    for values in shares.values():
        assert sum(values) == pytest.approx(100)
    for line in upper.lines:
        assert np.isfinite(line.get_ydata()).all()
