"""The answer in words: what was gained, what explains it, and what could not have been seen."""

from collections.abc import Mapping
from typing import Any

from kd_pipeline.evaluation import numbers
from kd_pipeline.evaluation.roles import LABELS, PSEUDO, TEACHER, label, words

_Json = Mapping[str, Any]

_EXPLANATIONS = {
    PSEUDO: "the gain in accuracy comes with any use of the teacher's labels; that soft targets "
    "add to it is not shown.",
    "student_smoothed": "it uses no teacher, so that the gain in accuracy needs one is not shown.",
    "student_longer": "what the teacher costs, spent on more epochs of hard labels, gains as much.",
}


def verdict(comparison: _Json) -> list[str]:
    """Whether the distilled student gained, and which controls explain it, a paragraph each."""
    gains, distilled = comparison["gains"], comparison["distilled"]
    if not gains:
        return ["Only the baseline was trained: there is nothing to compare."]
    if distilled is None:
        return [
            *(
                _answer(f"the arm {label(arm)}", "hard labels", gain["accuracy"])
                for arm, gain in gains.items()
            ),
            *too_few_replicates(comparison),
        ]
    gain, through = gains[distilled], _students_between(comparison)
    sentences = [_answer("distillation", "hard labels", gain["accuracy"]), _nll(gain["nll"])]
    sentences += too_few_replicates(comparison)
    for control, over in comparison["distilled_over"].items():
        if through and comparison["learnt_from"][control] == TEACHER and control != PSEUDO:
            directly = f"being taught by the teacher directly ({control})"
            answer = _answer(f"learning through {through}", directly, over["accuracy"])
            sentences.append(f"{answer} {_nll(over['nll'])}")
        else:
            taught = comparison["learnt_from"].get(control, LABELS) != LABELS
            sentences.append(_control(control, gain["accuracy"], over, taught=taught))
    return [*sentences, _recovered(comparison, gain)]


def _answer(subject: str, reference: str, difference: _Json) -> str:
    answer = {
        1: f"{subject[0].upper()}{subject[1:]} helped",
        -1: f"{subject[0].upper()}{subject[1:]} hurt",
        0: f"No evidence that {subject} helped or hurt",
    }[numbers.shown_sign(difference)]
    return numbers.running_text(
        f"**{answer}**: {numbers.points(difference)} points of accuracy over {reference}, "
        f"{_interval(difference)}; better in {numbers.wins(difference)} replicates.",
        by_holm_alone(difference),
        numbers.detectable_points(difference),
    )


def by_holm_alone(difference: _Json) -> str:
    """Why a difference is not shown whose interval leaves out 0."""
    low, high = difference["ci95"]
    if numbers.shown_sign(difference) or low <= 0 <= high:
        return ""
    return (
        f"By itself it would be shown (p = {numbers.p_value(difference)}), but it is one of "
        f"{difference['num_comparisons']} gains that were tested: p = "
        f"{numbers.p_value_holm(difference)} after Holm's adjustment."
    )


def too_few_replicates(comparison: _Json) -> list[str]:
    """What would narrow the interval of the distilled student's gain, or of the first arm's.

    A sentence, or none where more replicates would change little.
    """
    gains = comparison["gains"]
    main = comparison["distilled"] or next(iter(gains), None)
    if main is None or "replicates_needed" not in (gain := gains[main]["accuracy"]):
        return []
    low, high = gain["ci95"]
    return [
        f"The interval of {label(main)} is {100 * (high - low):.1f} points wide: more replicates "
        "are what is missing. If their spread stays as it is, "
        f"`student.num_replicates: {gain['replicates_needed']}` would do instead of "
        f"{gain['replicates']}: its half-width would be below the gain or below a point, or due to "
        "the number of test images."
    ]


def _nll(difference: _Json) -> str:
    found = {
        1: "The distilled student's NLL is worse",
        -1: "The distilled student's NLL is better",
        0: "Its NLL is not shown to differ",
    }[numbers.shown_sign(difference)]
    nats = f"{found}: {numbers.nats(difference)} nats, lower being better."
    return numbers.running_text(nats, numbers.detectable_nats(difference))


def _students_between(comparison: _Json) -> str:
    """The students between the teacher and the distilled one, in the order of their training."""
    learnt_from, path = comparison["learnt_from"], [comparison["distilled"]]
    while (source := learnt_from.get(path[0], TEACHER)) not in (TEACHER, LABELS):
        path.insert(0, source)
    return ", ".join(path[:-1])


def _control(control: str, gain: _Json, over: _Json, *, taught: bool) -> str:
    """Whether a control explains the gain; a tie where nothing was gained explains nothing.

    One that is `taught` learns from a teacher as well.
    """
    difference, name = over["accuracy"], f"The control {label(control)}"
    points = f"{numbers.points(difference)} points, {_interval(difference)}"
    measured = f"distilled minus {words(control)}: {points}"
    sign = numbers.shown_sign(difference)
    if sign > 0:
        return f"{name} does worse ({measured}): it does not explain the result."
    if sign < 0:
        return f"{name} does better ({measured}): prefer it."
    detectable = numbers.detectable_points(difference)
    if numbers.shown_sign(gain) <= 0:
        return numbers.running_text(f"{name} is within noise of it ({measured}).", detectable)
    has_soft_targets = taught and control != PSEUDO
    better = "the distilled student is" if has_soft_targets else "soft targets are"
    claim = "depends on the loss or its settings" if has_soft_targets else "needs soft targets"
    explanation = _EXPLANATIONS.get(control, f"that the gain in accuracy {claim} is not shown.")
    in_nll = {
        1: "In NLL the control is better",
        -1: f"In NLL {better} better than it",
        0: "Nor do the two differ in NLL",
    }[numbers.shown_sign(over["nll"])]
    return numbers.running_text(
        f"{name} does as well within noise ({measured}): {explanation}",
        detectable,
        f"{in_nll}: {numbers.nats(over['nll'])} nats.",
        numbers.detectable_nats(over["nll"]),
    )


def _recovered(comparison: _Json, gain: _Json) -> str:
    if comparison["teacher_gap"] is None:
        return (
            "The teacher's logits were imported and do not cover the test set: what it reaches "
            "there, how much of its lead the students recover and how closely they follow it are "
            "not known."
        )
    gap, share = comparison["teacher_gap"]["accuracy"], gain["gap_recovered"]
    lead = f"{numbers.points(gap)} points, {_interval(gap)}"
    if share is None:
        worse = numbers.shown_sign(gap) < 0
        finding = "does worse than" if worse else "is not shown to beat"
        return numbers.running_text(
            f"The teacher {finding} the baseline ({lead}), so there is no gap of which to recover "
            "a share.",
            numbers.detectable_points(gap),
        )
    recovers = f"the distilled student recovers {100 * share:.0f} % of that."
    if numbers.shown_sign(gain["accuracy"]) <= 0:
        recovers = "that the distilled student recovers any of it is not shown."
    return f"The teacher leads the baseline by {lead}; {recovers}"


def _interval(difference: _Json) -> str:
    return f"{numbers.level(difference)} interval {numbers.points_interval(difference)}"
