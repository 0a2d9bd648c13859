"""The table a run ends with."""

from collections.abc import Callable
from typing import Any

from kd_pipeline.evaluation.terminal import arms_table, exports_table

PATH = "data/08_reporting/report.html"


def test_shows_every_role_aligned_and_where_the_report_is(result: Any) -> None:
    lines = arms_table(result.comparison, PATH).splitlines()
    assert [line.split("  ")[0] for line in lines[2:7]] == [
        "teacher",
        "distilled (student_kd)",
        "hard labels (student_baseline)",
        "label smoothing (student_smoothed)",
        "pseudo-labels (student_pseudo)",
    ]
    assert len({len(line) for line in lines[:7]}) == 1
    assert lines[-1] == f"Report: {PATH}"
    for column in ("accuracy %", "NLL", "ECE", "agreement %", "gain in points [95 % interval]"):
        assert column in lines[0]


def test_a_gain_has_its_interval_and_the_baseline_none(result: Any) -> None:
    lines = arms_table(result.comparison, PATH).splitlines()
    gain = result.comparison["gains"]["student_kd"]["accuracy"]
    low, high = (f"{100 * bound:+.2f}" for bound in gain["ci95"])
    assert f"{100 * gain['mean']:+.2f} [{low}, {high}]" in lines[3]
    assert "[" not in lines[4]


def test_p_values_are_adjusted_for_the_number_of_arms(result: Any) -> None:
    head, _, _, _, _, smoothed, _, *_ = arms_table(result.comparison, PATH).splitlines()
    assert head.endswith("p (Holm)")
    adjusted = result.comparison["gains"]["student_smoothed"]["accuracy"]["p_value_holm"]
    assert smoothed.endswith(f"{adjusted:.3f}")


def test_a_report_that_is_not_kept_is_not_pointed_to(result: Any) -> None:
    assert "Report" not in arms_table(result.comparison, None)


def test_names_another_level(draw: Callable[..., Any]) -> None:
    table = arms_table(draw(confidence_level=0.9).comparison, PATH)
    assert "[90 % interval]" in table.splitlines()[0]


def test_a_baseline_alone_is_a_table_too(draw: Callable[..., Any]) -> None:
    alone = draw({"teacher": 0.99, "student_baseline": 0.9})
    assert "hard labels" in arms_table(alone.comparison, PATH)


def test_students_between_are_shown_with_the_verdict(draw: Callable[..., Any]) -> None:
    shares = {"assistant": 0.96, "student_assisted": 0.94, "student_kd": 0.9}
    drawn = draw({"teacher": 0.99, **shares, "student_baseline": 0.9},
                 learnt_from={"student_assisted": "assistant"})  # fmt: skip
    text = arms_table(drawn.comparison, PATH)
    head, _, teacher, assistant, *_ = text.splitlines()
    for column in ("learnt from", "architecture", "MACs"):
        assert column in head
    assert teacher.split()[:2] == ["teacher", "-"]
    assert assistant.split()[:2] == ["assistant", "teacher"]
    assert "Learning through assistant helped: +" in text
    assert "**" not in text


def test_exported_files_end_with_their_folder_and_report() -> None:
    lines = exports_table({"files": []}, "data/06_models/export", "export_report.html").splitlines()
    assert lines[-2:] == ["Exported: data/06_models/export", "Report: export_report.html"]
