"""The report on resplits in Markdown: the answer, the combined gains, each resplit, the method."""

from collections.abc import Mapping
from typing import Any

from kd_pipeline.evaluation import numbers
from kd_pipeline.evaluation.roles import BASELINE, label
from kd_pipeline.evaluation.tables import Rows, markdown
from kd_pipeline.evaluation.verdict import by_holm_alone

_Json = Mapping[str, Any]


def resplit_report(combined: _Json) -> str:
    """What `combine_resplits` gives, as Markdown."""
    sections = [
        "# Does distillation help under other splits too?",
        "\n\n".join(resplit_verdict(combined)),
        f"## Gains over {label(BASELINE)}",
        markdown(gain_rows(combined, "gains")),
    ]
    if combined["distilled_over"]:
        sections += [
            f"## {label(combined['distilled'])} over the controls",
            markdown(gain_rows(combined, "distilled_over")),
        ]
    sections += [
        "## Split by split",
        "Accuracy in %, and in brackets the gain in points; means over the replicates of each run.",
        markdown(_single_rows(combined)),
        "## What this rests on",
        "\n".join(f"- {line}" for line in _method_lines(combined)),
    ]
    return "\n\n".join(sections) + "\n"


def resplit_verdict(combined: _Json) -> list[str]:
    """A paragraph per compared arm, the distilled one first."""
    gains = combined["gains"]
    if not gains:
        return ["Only the baseline was trained: there is nothing to compare."]
    ordered = sorted(gains, key=lambda arm: arm != combined["distilled"])
    return [_answer(label(arm), gains[arm]["accuracy"]) for arm in ordered]


def _answer(arm: str, difference: _Json) -> str:
    points, num = numbers.points(difference), difference["replicates"]
    if not difference["std"]:
        return (
            f"**Nothing is shown of {arm}**: {points} points over hard labels in each of {num} "
            "resplits. Nothing varied, so that no spread and no interval is known."
        )
    answer = {
        1: f"{arm} is better than hard labels",
        -1: f"{arm} is worse than hard labels",
        0: f"No evidence that {arm} differs from hard labels",
    }[numbers.shown_sign(difference)]
    return numbers.running_text(
        f"**{answer}**: {points} points of accuracy over {num} resplits, "
        f"{numbers.level(difference)} interval {numbers.points_interval(difference)}, p (Holm) "
        f"{numbers.p_value_holm(difference)}; better in {numbers.wins(difference)}.",
        by_holm_alone(difference),
        numbers.detectable_points(difference),
    )


def gain_rows(combined: _Json, kind: str) -> Rows:
    """Accuracy and NLL of the differences of a kind: `gains` or `distilled_over`."""
    head = ["arm", "gain in points", "interval", "p", "p (Holm)", "better in", "NLL",
            "NLL, calibrated"]  # fmt: skip
    return [head, *([label(arm), *_gain(pair)] for arm, pair in combined[kind].items())]


def _gain(pair: _Json) -> list[str]:
    accuracy = pair["accuracy"]
    adjusted = "p_value_holm" in accuracy
    return [
        numbers.points(accuracy),
        numbers.points_interval(accuracy) if accuracy["std"] else numbers.NOTHING,
        numbers.p_value(accuracy),
        numbers.p_value_holm(accuracy) if adjusted else numbers.NOTHING,
        numbers.wins(accuracy),
        *(
            numbers.nats(pair[key]) if key in pair else numbers.NOTHING
            for key in ("nll", "nll_calibrated")
        ),
    ]


def _single_rows(combined: _Json) -> Rows:
    """A row per seed: the accuracy of each role, with its gain where it has one."""
    roles, gains = combined["accuracies"], combined["single_gains"]
    rows = []
    for at, seed in enumerate(combined["seeds"]):
        cells = []
        for role, spread in roles.items():
            gain = f" ({numbers.signed(100 * gains[role][at], places=2)})" if role in gains else ""
            cells.append(f"{100 * spread['values'][at]:.2f}{gain}")
        rows.append([str(seed), *cells])
    means = [numbers.percent(spread) for spread in roles.values()]
    return [["seed", *map(label, roles)], *rows, ["mean ± std", *means]]


def _method_lines(combined: _Json) -> list[str]:
    """What the result rests on."""
    method = combined["method"]
    test, training = method["num_test_examples"], method["num_training_examples"]
    return [
        f"{method['num_resplits']} runs of everything, each with a seed of its own for the split, "
        f"the teacher, the {method['num_replicates']} student(s) per arm and the views. A run's "
        "gain is the mean over its replicates.",
        "Corrected resampled t-test (Nadeau and Bengio 2003): the variance of the mean is "
        f"(1 / {method['num_resplits']} + {test:,.0f} / {training:,.0f}) times that of the gains, "
        f"the second term being test examples / training examples; Student's t of "
        f"{method['num_resplits'] - 1} degrees of freedom. Training examples are those that the "
        "teacher or the students may train on, labelled or not.",
        _premise(shared=method["same_test_set"]),
        "p (Holm) is adjusted for the number of arms, and a gain counts as shown where it is below "
        f"{100 * (1 - method['confidence_level']):g} % too; p, the intervals and all of NLL are "
        "not. The smallest difference that could have been shown is the true one that so many "
        f"resplits with this spread show with a probability of {100 * method['power']:g} %.",
        "It holds for these images and these settings. The settings were not chosen anew on each "
        "split.",
    ]


def _premise(*, shared: bool) -> str:
    if not shared:
        return (
            "Each run drew its own test set from the same images. The correction allows for the "
            "overlap of these sets; it is an approximation, which assumes that results depend on "
            "the training examples only through their number."
        )
    return (
        "**All runs share one test set**, which the data set brings: the premise of the "
        "correction, random test sets, does not hold. What is estimated is the gain on these very "
        "test images under other draws of training and validation examples and other seeds; other "
        "test images are not accounted for. The correction is kept as an allowance for training "
        "sets that overlap, without a derivation."
    )
