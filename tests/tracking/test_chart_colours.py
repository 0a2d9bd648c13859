"""The arms' colours: MLflow's own hash gives them, and no two arms of a run share one."""

from pathlib import Path

import mlflow
import pytest

from kd_pipeline.evaluation.roles import TEACHER, colours, label
from kd_pipeline.pipeline_registry import (
    BORN_AGAIN,
    COMPARE_LOSSES,
    DISTILL,
    DISTILL_CONTROLS,
    DISTILL_LIVE,
    DISTILL_PAIR,
    TEACHER_ASSISTANT,
)
from kd_pipeline.pipelines.student_distillation import Student
from kd_pipeline.tracking.chart_colours import GROUPED_BY, arm_tags, group_colour

LISTS = [
    DISTILL,
    DISTILL_CONTROLS,
    COMPARE_LOSSES,
    DISTILL_LIVE,
    DISTILL_PAIR,
    TEACHER_ASSISTANT,
    BORN_AGAIN,
]


def test_a_hash_by_hand() -> None:
    """The codes of "tag.kd.arm." add up to 981, and their partial sums to 6114.

    981 % 255 = 216, 6114 % 255 = 249, and 216 + 256 * 249 = 63,960 leaves 15 over 29.
    """
    assert group_colour("") == "#de7921"


@pytest.mark.parametrize("students", LISTS, ids=lambda students: students[0].name)
def test_no_two_arms_of_a_run_share_a_colour(students: tuple[Student, ...]) -> None:
    roles = sorted([TEACHER, *(student.name for student in students)])
    tags = [arm_tags(label(role), colour) for role, colour in colours(roles).items()]
    assert len({group_colour(one[GROUPED_BY]) for one in tags}) == len(roles)


@pytest.mark.parametrize("name", ["distilled (student_kd)", "mine", "λ"])
def test_a_group_and_its_runs_have_one_colour_and_the_name_is_shown_as_it_is(name: str) -> None:
    tags = arm_tags(name, "#0072B2")
    assert group_colour(tags[GROUPED_BY]) == tags["mlflow.runColor"] == "#137dae"
    assert tags[GROUPED_BY].rstrip(" ") == name


def test_mlflow_still_colours_groups_so() -> None:
    """Its page has this palette and this hash; where they change, the decision is to be redone."""
    (page,) = Path(mlflow.__file__).parent.glob("server/js/build/static/js/main.*.js")
    code = page.read_text(encoding="utf-8")
    assert '["#a6630c","#c83243","#b45091","#8a63bf","#434a93","#137dae","#04867d"' in code
    assert '"#c82d4c","#e65b77","#f792a6","#0e538b","#2272b4","#4299e0","#8acaff"]' in code
    assert ".charCodeAt(r))%255,n=(n+t)%255;return r.T[(t|n<<8)%r.T.length]" in code
