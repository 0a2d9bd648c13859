"""What the roles are called and which colour each keeps in every figure."""

_WORDS = {
    "teacher": "teacher",
    "student_baseline": "hard labels",
    "student_kd": "distilled",
    "student_live": "distilled, live teacher",
    "student_smoothed": "label smoothing",
    "student_pseudo": "pseudo-labels",
}
# Okabe & Ito 2008: told apart with any colour vision.
_COLOURS = {
    "teacher": "#000000",
    "student_baseline": "#7F7F7F",
    "student_kd": "#0072B2",
    "student_live": "#0072B2",
    "student_smoothed": "#E69F00",
    "student_pseudo": "#009E73",
}
_OTHER_COLOURS = ("#CC79A7", "#D55E00", "#56B4E9", "#F0E442")


def words(role: str) -> str:
    """A role as running text calls it; an arm of the user's own keeps its name."""
    return _WORDS.get(role, role)


def label(role: str) -> str:
    """A role in words with its name beside it: "distilled (student_kd)"."""
    return role if words(role) == role else f"{words(role)} ({role})"


def colours(roles: list[str]) -> dict[str, str]:
    """One colour per role: fixed for the known ones, in order of mention for others."""
    others = [role for role in roles if role not in _COLOURS]
    chosen = {
        role: _OTHER_COLOURS[index % len(_OTHER_COLOURS)] for index, role in enumerate(others)
    }
    return {role: _COLOURS.get(role) or chosen[role] for role in roles}
