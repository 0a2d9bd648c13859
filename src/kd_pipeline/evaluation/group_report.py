"""The report on past groups side by side, in Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

from kd_pipeline.evaluation import numbers
from kd_pipeline.evaluation.roles import TEACHER, label, measured_roles
from kd_pipeline.evaluation.tables import markdown

_Json = Mapping[str, Any]

_MAX_CHARACTERS = 80


def group_report(compared: _Json) -> str:
    """What `compare_groups` gives, as Markdown."""
    sections = [
        "# How do these groups differ?",
        "\n\n".join(group_verdict(compared)),
        "## Groups and arms",
        _arms_table(compared),
        "## One group minus another",
        _differences_table(compared) or "No two of these groups are compared in pairs.",
        "## Settings that differ",
        _settings_table(compared) or "None of those that are logged.",
        "## What this rests on",
        "\n".join(f"- {line}" for line in _method(compared)),
    ]
    return "\n\n".join(sections) + "\n"


def group_verdict(compared: _Json) -> list[str]:
    """A sentence per arm that two groups share, the distilled ones first; or why there is none."""
    distilled = {one["comparison"]["distilled"] for one in compared["groups"]}
    ordered = sorted(compared["differences"], key=lambda one: one["role"] not in distilled)
    sentences = [_answer(one) for one in ordered if one["role"] != TEACHER and not _is_equal(one)]
    return [
        *sentences,
        *_equal_arms([one for one in ordered if _is_equal(one)]),
        *(
            f"{one['later']} and {one['earlier']} are not compared in pairs: {one['reason']}."
            for one in compared["not_compared"]
        ),
    ]


def _is_equal(one: _Json) -> bool:
    return all(one[key]["ci95"] == [0.0, 0.0] for key in ("accuracy", "nll"))


def _equal_arms(differences: Sequence[_Json]) -> list[str]:
    """A sentence for each two groups that have arms with the same results."""
    arms: dict[tuple[str, str], list[str]] = {}
    for one in differences:
        arms.setdefault((one["later"], one["earlier"]), []).append(label(one["role"]))
    return [
        f"Equal in {later} and {earlier}, example by example: {', '.join(names)}."
        for (later, earlier), names in arms.items()
    ]


def _answer(one: _Json) -> str:
    difference, name = one["accuracy"], label(one["role"])
    answer = {
        1: f"**{name} is better in {one['later']} than in {one['earlier']}**",
        -1: f"**{name} is worse in {one['later']} than in {one['earlier']}**",
        0: f"**No evidence that {name} differs** between {one['later']} and {one['earlier']}",
    }[numbers.shown_sign(difference)]
    return (
        f"{answer}: {numbers.points(difference)} points of accuracy, {numbers.level(difference)} "
        f"interval {numbers.points_interval(difference)}; NLL {numbers.nats(one['nll'])} nats, "
        "lower being better."
    )


def _arms_table(compared: _Json) -> str:
    head = ["group", "start", "arm", "accuracy %", "NLL", "gain in points", "interval", "p",
            "gain in NLL"]  # fmt: skip
    rows = []
    for one in compared["groups"]:
        comparison = one["comparison"]
        for arm, measured in measured_roles(comparison).items():
            values = [numbers.percent(measured["accuracy"]), numbers.decimals(measured["nll"])]
            gain = _cells_of(comparison["gains"].get(arm))
            rows.append([one["group"], one["start"], label(arm), *values, *gain])
    return markdown([head, *rows], words=head[:3]) if rows else ""


def _differences_table(compared: _Json) -> str:
    head = ["later", "minus", "arm", "accuracy in points", "interval", "p", "NLL", "replicates"]
    rows = [
        [
            *(one["later"], one["earlier"], label(one["role"])),
            *_cells_of(one),
            str(one["accuracy"]["replicates"]),
        ]
        for one in compared["differences"]
    ]
    return markdown([head, *rows], words=head[:3]) if rows else ""


def _cells_of(pair: _Json | None) -> list[str]:
    """Points, their interval and p-value, and the NLL with its interval."""
    if pair is None:
        return [numbers.NOTHING] * 4
    accuracy = pair["accuracy"]
    shown = (numbers.points, numbers.points_interval, numbers.p_value)
    return [*(show(accuracy) for show in shown), numbers.nats(pair["nll"])]


def _settings_table(compared: _Json) -> str:
    head = ["setting", "of", *(one["group"] for one in compared["groups"])]
    rows = [
        [one["setting"], ", ".join(one["roles"]), *map(_shown, one["values"])]
        for one in compared["settings"]
    ]
    return markdown([head, *rows], words=head) if rows else ""


def _shown(value: str | None) -> str:
    if value is None:
        return numbers.NOTHING
    return value if len(value) <= _MAX_CHARACTERS else f"{value[:_MAX_CHARACTERS]}..."


def _method(compared: _Json) -> list[str]:
    num_roles = len(compared["differences"])
    return [
        "Each group is one `kedro run`, as MLflow has it. Its gains are over its own "
        "student_baseline, as that run reported them.",
        "Differences between groups are paired bootstraps over replicates and test examples where "
        "both read the same test set: the fingerprint covers all images, the test examples and "
        "their labels. Replicate r of one group is paired with replicate r of the other; those "
        "that only one group has are left out.",
        f"{num_roles} differences are tested; p-values are as they are, not corrected for their "
        "number.",
        "Each holds for the split and the teacher of its two groups. Where several settings "
        "differ, no difference is due to one of them alone.",
    ]
