"""Names and colours of roles."""

from kd_pipeline.evaluation.roles import colours, label, words

KNOWN = ["teacher", "student_baseline", "student_kd", "student_smoothed", "student_pseudo"]


def test_a_known_role_is_said_in_words() -> None:
    assert label("student_kd") == "distilled (student_kd)"
    assert label("teacher") == "teacher"
    assert words("student_baseline") == "hard labels"


def test_an_arm_of_the_users_own_keeps_its_name() -> None:
    assert label("my_arm") == words("my_arm") == "my_arm"


def test_every_role_has_its_own_colour_and_keeps_it() -> None:
    shades = colours([*KNOWN, "mine", "another"])
    assert len(set(shades.values())) == 7
    assert colours(["mine", "student_kd"])["student_kd"] == shades["student_kd"]
