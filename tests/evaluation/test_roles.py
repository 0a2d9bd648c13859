"""Names and colours of roles."""

from kd_pipeline.evaluation.roles import colours, intermediate_students, label, words

KNOWN = ["teacher", "student_baseline", "student_kd", "student_smoothed", "student_pseudo"]


def test_a_known_role_is_in_words() -> None:
    assert label("student_kd") == "distilled (student_kd)"
    assert label("teacher") == "teacher"
    assert words("student_baseline") == "hard labels"


def test_an_arm_of_the_users_own_keeps_its_name() -> None:
    assert label("my_arm") == words("my_arm") == "my_arm"


def test_every_role_has_its_own_colour_and_keeps_it() -> None:
    shades = colours([*KNOWN, "mine", "another"])
    assert len(set(shades.values())) == 7
    chain = colours(["teacher", "assistant", "student_assisted", "student_kd", "mine", "another"])
    assert len(set(chain.values())) == 6
    assert colours(["mine", "student_kd"])["student_kd"] == shades["student_kd"]


def test_students_that_others_learnt_from_are_intermediate_but_the_baseline() -> None:
    learnt_from = {"student_baseline": "labels", "a": "student_baseline", "b": "a", "c": "teacher"}
    assert intermediate_students(learnt_from) == ["a"]
