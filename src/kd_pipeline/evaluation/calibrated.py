"""What one temperature per model changes, in words."""

from collections.abc import Mapping
from typing import Any

from kd_pipeline.config import MAX_TEMPERATURE, MIN_TEMPERATURE
from kd_pipeline.evaluation import numbers
from kd_pipeline.evaluation.roles import BASELINE, measured_roles, words

_Json = Mapping[str, Any]


def calibration_answer(comparison: _Json) -> list[str]:
    """Whether the distilled student's NLL is more than one temperature gives hard labels too.

    And what the temperatures were fitted on; a paragraph each.
    """
    baseline = comparison["arms"][BASELINE]
    if baseline["calibration_temperature"]["mean"] is None:
        return ["No model was calibrated: validation has no labelled example."]
    fitted = (
        "The logits of each model are divided by the temperature, one per model, at which the NLL "
        f"of {numbers.count(baseline['calibration_examples'])} labelled validation examples is "
        "least; the test set has no part in it."
    )
    distilled = comparison["distilled"]
    answer = [] if distilled is None else [_survival(comparison, distilled)]
    noted = numbers.running_text(fitted, _worse_on_test(comparison), _at_the_bound(comparison))
    return [*answer, noted]


def _survival(comparison: _Json, distilled: str) -> str:
    raw, calibrated = (comparison["gains"][distilled][key] for key in ("nll", "nll_calibrated"))
    before, after = numbers.shown_sign(raw), numbers.shown_sign(calibrated)
    if before < 0:
        found = {
            -1: "The distilled student's advantage in NLL survives",
            0: "That the distilled student's advantage in NLL survives is not shown",
            1: "The distilled student's advantage in NLL turns into a disadvantage",
        }[after]
    else:
        found = {
            -1: "The distilled student's NLL becomes better than that of hard labels",
            0: "The distilled student's NLL is not shown to differ from that of hard labels",
            1: "The distilled student's NLL is worse than that of hard labels",
        }[after]
    errors = " and ".join(_errors_of_calibration(comparison, arm) for arm in (distilled, BASELINE))
    return numbers.running_text(
        f"**{found}** when both are given one temperature: the difference is "
        f"{numbers.nats(calibrated)} nats, without it {numbers.nats(raw)}.",
        numbers.detectable_nats(calibrated),
        f"ECE goes {errors}.",
    )


def _errors_of_calibration(comparison: _Json, arm: str) -> str:
    raw, calibrated = (comparison["arms"][arm][key] for key in ("ece", "ece_calibrated"))
    return f"from {numbers.decimals(raw)} to {numbers.decimals(calibrated)} for {words(arm)}"


def _worse_on_test(comparison: _Json) -> str:
    """Whose NLL the temperature raises: what fits validation need not fit the test set."""
    worse = [
        words(role)
        for role, measured in measured_roles(comparison).items()
        if (measured["nll_calibrated"]["mean"] or 0.0) > measured["nll"]["mean"]
    ]
    return f"It raises the NLL on the test set of: {', '.join(worse)}." if worse else ""


def _at_the_bound(comparison: _Json) -> str:
    """Which temperatures validation does not determine."""
    at_bound = [
        words(role)
        for role, measured in measured_roles(comparison).items()
        if any(map(_is_bound, measured["calibration_temperature"]["values"]))
    ]
    if not at_bound:
        return ""
    return (
        "A temperature lies at the end of the range searched, so that these examples do not "
        f"determine it, of: {', '.join(at_bound)}."
    )


def _is_bound(temperature: float | None) -> bool:
    within = 1.01 * MIN_TEMPERATURE, MAX_TEMPERATURE / 1.01
    return temperature is not None and not within[0] < temperature < within[1]
