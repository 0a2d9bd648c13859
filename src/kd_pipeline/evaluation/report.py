"""The report: the result in words first, then the table, then what it rests on."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from kd_pipeline.evaluation import numbers
from kd_pipeline.evaluation.roles import label, words

_BASELINE = "student_baseline"
_PSEUDO = "student_pseudo"
_SMOOTHED = "student_smoothed"
_FIGURES = {
    "Accuracy of every replicate, and the gain over hard labels": "figures/accuracy_figure.png",
    "Calibration": "figures/reliability_figure.png",
    "Confusion": "figures/confusion_figure.png",
    "Gain per class": "figures/class_gain_figure.png",
}


def markdown_report(comparison: Mapping[str, Any], metrics: pd.DataFrame) -> str:
    """Write the comparison for a reader who was not there, null and negative results included.

    Args:
        comparison: As `metrics.comparison.compare` gives it.
        metrics: One row per role and replicate; `model/parameters` is taken from it.

    Returns:
        Markdown, ending in a newline. It points to the figures by file name, beside it.
    """
    sections = [
        "# Did distillation help?",
        "\n\n".join(_verdict(comparison)),
        "## Arms",
        _arms_table(comparison, metrics),
        "## What this rests on",
        "\n".join(f"- {line}" for line in _method(comparison)),
        "## Figures",
        "\n\n".join(f"![{title}]({file})" for title, file in _FIGURES.items()),
    ]
    return "\n\n".join(sections) + "\n"


def _verdict(comparison: Mapping[str, Any]) -> list[str]:
    gains = comparison["gains"]
    if not gains:
        return ["Only the baseline was trained: there is nothing to compare."]
    if comparison["distilled"] is None:
        return [_gain_sentence(arm, gain) for arm, gain in gains.items()]
    gain = gains[comparison["distilled"]]
    sentences = [_answer(gain["accuracy"]), _likelihood(gain["nll"])]
    sentences += [
        _control(control, gain["accuracy"], pair)
        for control, pair in comparison["distilled_over"].items()
    ]
    return [*sentences, _recovered(comparison, gain)]


def _answer(difference: Mapping[str, Any]) -> str:
    found = (
        f"{numbers.points(difference)} points of accuracy over hard labels, {_interval(difference)}"
    )
    wins = f"better in {difference['wins']} of {difference['replicates']} replicates"
    match numbers.side_of_zero(difference):
        case 1:
            return f"**Distillation helped**: {found}; {wins}."
        case -1:
            return f"**Distillation hurt**: {found}; {wins}."
    return f"**No evidence that distilling helped or hurt**: {found}; {wins}."


def _likelihood(difference: Mapping[str, Any]) -> str:
    verdict = {
        1: "The distilled student's NLL is worse",
        -1: "The distilled student's NLL is better",
        0: "Its NLL is not shown to differ",
    }[numbers.side_of_zero(difference)]
    return f"{verdict}: {numbers.nats(difference)} nats, lower being better."


def _control(control: str, gain: Mapping[str, Any], over: Mapping[str, Any]) -> str:
    """Say whether a control explains the gain away. A tie of nothing explains nothing."""
    difference = over["accuracy"]
    measured = (
        f"distilled minus {words(control)}: {numbers.points(difference)} points, "
        f"{_interval(difference)}"
    )
    sign = numbers.side_of_zero(difference)
    if sign > 0:
        return (
            f"The control {label(control)} does worse ({measured}): it does not explain the result."
        )
    if sign < 0:
        return f"The control {label(control)} does better ({measured}): prefer it."
    if numbers.side_of_zero(gain) <= 0:
        return f"The control {label(control)} is within noise of it ({measured})."
    return (
        f"The control {label(control)} does as well within noise ({measured}): "
        f"{_explanation(control)}{_likelihood_beside(over['nll'])}"
    )


def _explanation(control: str) -> str:
    if control == _PSEUDO:
        return (
            "the gain in accuracy comes with any use of the teacher's labels; that soft targets "
            "add to it is not shown."
        )
    if control == _SMOOTHED:
        return "it uses no teacher, so that the gain in accuracy needs one is not shown."
    return "that the gain in accuracy needs soft targets is not shown."


def _likelihood_beside(difference: Mapping[str, Any]) -> str:
    verdict = {
        1: " In NLL the control is better",
        -1: " In NLL soft targets are better than it",
        0: " Nor do the two differ in NLL",
    }[numbers.side_of_zero(difference)]
    return f"{verdict}: {numbers.nats(difference)} nats."


def _recovered(comparison: Mapping[str, Any], gain: Mapping[str, Any]) -> str:
    if comparison["teacher_gap"] is None:
        return (
            "The teacher's logits were imported and do not cover the test set: what it reaches "
            "there, how much of its lead the students recover and how closely they follow it are "
            "not known."
        )
    gap = comparison["teacher_gap"]["accuracy"]
    lead = f"{numbers.points(gap)} points, {_interval(gap)}"
    if gain["gap_recovered"] is None:
        return (
            f"The teacher is not shown to beat the baseline ({lead}), so there is no gap of which "
            "to recover a share."
        )
    if numbers.side_of_zero(gain["accuracy"]) <= 0:
        return (
            f"The teacher leads the baseline by {lead}; that the distilled student recovers any of "
            "it is not shown."
        )
    share = f"{100 * gain['gap_recovered']:.0f} %"
    return (
        f"The teacher leads the baseline by {lead}; the distilled student recovers {share} of that."
    )


def _gain_sentence(arm: str, gain: Mapping[str, Any]) -> str:
    difference = gain["accuracy"]
    verdict = {1: "beats hard labels", -1: "is worse than hard labels", 0: "shows no difference"}
    found = f"{numbers.points(difference)} points of accuracy, {_interval(difference)}"
    return f"The arm {label(arm)} {verdict[numbers.side_of_zero(difference)]}: {found}."


def _arms_table(comparison: Mapping[str, Any], metrics: pd.DataFrame) -> str:
    head = [
        "arm", "parameters", "accuracy %", "errors", "NLL", "ECE", "agreement with the teacher %",
        "gain in points", "interval", "p", "wins",
    ]  # fmt: skip
    teacher = comparison["teacher"]
    rows = [] if teacher is None else [_table_row("teacher", teacher, None, metrics)]
    rows += [
        _table_row(arm, spreads, comparison["gains"].get(arm), metrics)
        for arm, spreads in comparison["arms"].items()
    ]
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, rule, *rows])


def _table_row(
    role: str, spreads: Mapping[str, Any], gain: Mapping[str, Any] | None, metrics: pd.DataFrame
) -> list[str]:
    agreement = (
        numbers.NOTHING if role == "teacher" else numbers.percent(spreads["teacher_agreement"])
    )
    measured = [
        label(role),
        _num_parameters(metrics, role),
        numbers.percent(spreads["accuracy"]),
        f"{spreads['errors']['mean']:.1f}".removesuffix(".0"),
        numbers.decimals(spreads["nll"]),
        numbers.decimals(spreads["ece"]),
        agreement,
    ]
    if gain is None:
        return measured + [numbers.NOTHING] * 4
    difference = gain["accuracy"]
    return [
        *measured,
        numbers.points(difference),
        numbers.points_interval(difference),
        numbers.p_value(difference),
        f"{difference['wins']} of {difference['replicates']}",
    ]


def _num_parameters(metrics: pd.DataFrame, role: str) -> str:
    values = metrics.loc[metrics["role"] == role, "model/parameters"].dropna()
    return numbers.NOTHING if values.empty else f"{int(values.iloc[0]):,}"


def _method(comparison: Mapping[str, Any]) -> list[str]:
    method = comparison["method"]
    replicates, compared = method["num_replicates"], method["num_comparisons"]
    origin = [
        "The teacher was given and does not say what it was trained on: that it never saw these "
        "test images cannot be verified."
    ]
    lines = [
        *([] if method["teacher_data_known"] else origin),
        f"{method['num_test_examples']:,} test examples, read once, after all training and all "
        "choices were done.",
        f"{replicates} replicate(s) per arm. Replicate r has the same initial weights, views "
        "and budget of steps in every arm, and the same batches wherever two arms learn from the "
        "same rows; ± is the standard deviation over replicates.",
        f"Intervals and p-values: paired bootstrap over "
        f"{'replicates and ' if replicates > 1 else ''}test examples, "
        f"{method['num_bootstrap_samples']:,} samples.",
        f"{compared} arm(s) were compared with {label(_BASELINE)}, and the distilled arm with "
        f"{len(comparison['distilled_over'])} control(s); p-values are as they are, not corrected "
        "for their number.",
        "All of it is conditional on this split of the data and on this teacher: another split or "
        "another teacher may give another answer.",
    ]
    if replicates == 1:
        lines.insert(2, "**With one replicate nothing is known of other seeds**: the intervals "
                     "cover the choice of test examples only, and are too narrow.")  # fmt: skip
    return lines


def _interval(difference: Mapping[str, Any]) -> str:
    return f"{numbers.level(difference)} interval {numbers.points_interval(difference)}"
