"""Roles: their names, words for them, and their colours in all figures."""

from collections.abc import Mapping, Sequence
from typing import Any

TEACHER = "teacher"
BASELINE = "student_baseline"
PSEUDO = "student_pseudo"
LABELS = "labels"
"""What a student without a teacher learns from."""

# Words, and colours of Okabe & Ito 2008, which differ with any colour vision. For more than eight
# roles, those of Tol's muted scheme.
_KNOWN = {
    TEACHER: ("teacher", "#000000"),
    BASELINE: ("hard labels", "#7F7F7F"),
    "student_kd": ("distilled", "#0072B2"),
    "student_live": ("distilled, live teacher", "#0072B2"),
    "student_assisted": ("distilled through an assistant", "#D55E00"),
    "student_smoothed": ("label smoothing", "#E69F00"),
    "student_longer": ("hard labels at the teacher's cost", "#CC79A7"),
    PSEUDO: ("pseudo-labels", "#009E73"),
    "assistant": ("assistant", "#56B4E9"),
}
_OKABE_ITO = ("#CC79A7", "#D55E00", "#56B4E9", "#F0E442")
_MUTED = ("#332288", "#117733", "#882255", "#999933", "#44AA99", "#AA4499")
_OTHER_COLOURS = _OKABE_ITO + _MUTED


def words(role: str) -> str:
    """A role in running text: "distilled"; the name of a student that is not known here."""
    return _KNOWN[role][0] if role in _KNOWN else role


def label(role: str) -> str:
    """A role in words with its name beside it: "distilled (student_kd)"."""
    return role if words(role) == role else f"{words(role)} ({role})"


def colours(roles: Sequence[str]) -> dict[str, str]:
    """One colour per role: fixed for the known ones, in order of mention for others."""
    chosen = {role: _KNOWN[role][1] for role in roles if role in _KNOWN}
    free = [colour for colour in _OTHER_COLOURS if colour not in chosen.values()]
    others = [role for role in roles if role not in _KNOWN]
    return chosen | {role: free[index % len(free)] for index, role in enumerate(others)}


def measured_roles(comparison: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics of each role in comparison.json: the arms, and the teacher if measured."""
    teacher = {TEACHER: comparison["teacher"]} if comparison["teacher"] else {}
    return {**teacher, **comparison["arms"]}


def intermediate_students(learnt_from: Mapping[str, str]) -> list[str]:
    """Students that another student learnt from; the baseline stays the baseline.

    Args:
        learnt_from: The role that each student learnt from, or `LABELS`.
    """
    return [role for role in learnt_from if role in learnt_from.values() and role != BASELINE]
