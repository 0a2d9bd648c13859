"""The report in Markdown: the result in words, the table, what the result rests on."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from kd_pipeline.evaluation import numbers, tables
from kd_pipeline.evaluation.roles import BASELINE, LABELS, PSEUDO, TEACHER, label, words

_Json = Mapping[str, Any]

_FIGURES = {
    "Accuracy of every replicate, and the gain over hard labels": "figures/accuracy_figure.png",
    "Calibration": "figures/reliability_figure.png",
    "Confusion": "figures/confusion_figure.png",
    "Gain per class": "figures/class_gain_figure.png",
}
_EXPLANATIONS = {
    PSEUDO: "the gain in accuracy comes with any use of the teacher's labels; that soft targets "
    "add to it is not shown.",
    "student_smoothed": "it uses no teacher, so that the gain in accuracy needs one is not shown.",
}


def markdown_report(comparison: _Json, *, about_labels: Sequence[str] = ()) -> str:
    """The content of comparison.json as Markdown, with links to the figures.

    Args:
        comparison: The content of comparison.json.
        about_labels: Sentences on the labels, as `describe_labels` gives them.
    """
    sections = [
        "# Did distillation help?",
        "\n\n".join(verdict(comparison)),
        "## Arms",
        _table(comparison),
        "## What this rests on",
        "\n".join(f"- {line}" for line in [*_method(comparison), *about_labels]),
        "Files for devices, where a run has exported any, are in export_report.md.",
        "## Figures",
        "\n\n".join(f"![{title}]({file})" for title, file in _FIGURES.items()),
    ]
    return "\n\n".join(sections) + "\n"


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
            sentences.append(_control(control, gain["accuracy"], over))
    return [*sentences, _recovered(comparison, gain)]


def _answer(subject: str, reference: str, difference: _Json) -> str:
    answer = {
        1: f"{subject[0].upper()}{subject[1:]} helped",
        -1: f"{subject[0].upper()}{subject[1:]} hurt",
        0: f"No evidence that {subject} helped or hurt",
    }[numbers.side_of_zero(difference)]
    return (
        f"**{answer}**: {numbers.points(difference)} points of accuracy over {reference}, "
        f"{_interval(difference)}; better in {_wins(difference)} replicates."
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
    }[numbers.side_of_zero(difference)]
    return f"{found}: {numbers.nats(difference)} nats, lower being better."


def _students_between(comparison: _Json) -> str:
    """The students between the teacher and the distilled one, in the order of their training."""
    learnt_from, path = comparison["learnt_from"], [comparison["distilled"]]
    while (source := learnt_from.get(path[0], TEACHER)) not in (TEACHER, LABELS):
        path.insert(0, source)
    return ", ".join(path[:-1])


def _control(control: str, gain: _Json, over: _Json) -> str:
    """Whether a control explains the gain; a tie where nothing was gained explains nothing."""
    difference, name = over["accuracy"], f"The control {label(control)}"
    points = f"{numbers.points(difference)} points, {_interval(difference)}"
    measured = f"distilled minus {words(control)}: {points}"
    sign = numbers.side_of_zero(difference)
    if sign > 0:
        return f"{name} does worse ({measured}): it does not explain the result."
    if sign < 0:
        return f"{name} does better ({measured}): prefer it."
    if numbers.side_of_zero(gain) <= 0:
        return f"{name} is within noise of it ({measured})."
    explanation = _EXPLANATIONS.get(
        control, "that the gain in accuracy needs soft targets is not shown."
    )
    in_nll = {
        1: "In NLL the control is better",
        -1: "In NLL soft targets are better than it",
        0: "Nor do the two differ in NLL",
    }[numbers.side_of_zero(over["nll"])]
    return (
        f"{name} does as well within noise ({measured}): {explanation} {in_nll}: "
        f"{numbers.nats(over['nll'])} nats."
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
        worse = numbers.side_of_zero(gap) < 0
        finding = "does worse than" if worse else "is not shown to beat"
        return (
            f"The teacher {finding} the baseline ({lead}), so there is no gap of which to recover "
            "a share."
        )
    recovers = f"the distilled student recovers {100 * share:.0f} % of that."
    if numbers.side_of_zero(gain["accuracy"]) <= 0:
        recovers = "that the distilled student recovers any of it is not shown."
    return f"The teacher leads the baseline by {lead}; {recovers}"


def _table(comparison: _Json) -> str:
    gained = partial(tables.gain_column, comparison)
    columns: tables.Columns = {
        "arm": label,
        **tables.model_columns(comparison),
        **tables.metric_columns(comparison, short=False),
        "gain in points": gained(numbers.points),
        "interval": gained(numbers.points_interval),
        "p": gained(numbers.p_value),
        "wins": gained(_wins),
    }
    head, *rows = tables.table_rows(comparison, columns)
    in_words = ("arm", "learnt from", "architecture")
    rule = ["---" if heading in in_words else "---:" for heading in head]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, rule, *rows])


def _method(comparison: _Json) -> list[str]:
    method, between = comparison["method"], comparison["intermediate"]
    replicates = method["num_replicates"]
    over = "replicates and test examples" if replicates > 1 else "test examples"
    lines = [
        f"{method['num_test_examples']:,} test examples, read once, after all training and all "
        "choices were done.",
        f"{replicates} replicate(s) per arm. Replicate r has the same initial weights, views "
        "and budget of steps in every arm, and the same batches wherever two arms learn from the "
        "same rows; ± is the standard deviation over replicates.",
        f"Intervals and p-values: paired bootstrap over {over}, "
        f"{method['num_bootstrap_samples']:,} samples.",
        f"{method['num_comparisons']} arm(s) were compared with {label(BASELINE)}, and the "
        f"distilled arm with {len(comparison['distilled_over'])} control(s); p-values are as they "
        "are, not corrected for their number.",
        "All of it is conditional on this split of the data and on this teacher: another split or "
        "another teacher may give another answer.",
    ]
    if between:
        lines.append(
            f"So it is on {', '.join(between)}, which other students learnt from: measured, not "
            "compared in pairs. The replicates of one teach as their ensemble average."
        )
    if replicates == 1:
        lines.insert(2, "**With one replicate nothing is known of other seeds**: the intervals "
                     "cover the choice of test examples only, and are too narrow.")  # fmt: skip
    if not method["teacher_data_known"]:
        lines.insert(0, "The teacher was given without a record of its training data: that these "
                     "test images are not among them cannot be verified.")  # fmt: skip
    return lines


def _wins(difference: _Json) -> str:
    return f"{difference['wins']} of {difference['replicates']}"


def _interval(difference: _Json) -> str:
    return f"{numbers.level(difference)} interval {numbers.points_interval(difference)}"
