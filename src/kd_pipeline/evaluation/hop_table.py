"""The table of hops, and in words whether a chain's detour helped."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from kd_pipeline.evaluation import numbers
from kd_pipeline.evaluation.terminal import aligned
from kd_pipeline.training.block_settings import DIRECT, FIRST_TEACHER, LABELS_ALONE

_WORDS = {LABELS_ALONE: "hard labels alone", DIRECT: "learning from the first teacher directly"}
_SIZES = {"parameters": "model/parameters", "macs": "model/macs", "size_bytes": "model/size_bytes"}
_MEANS = {
    "validation_accuracy": "validation_accuracy",
    "test_accuracy": "test/accuracy",
    "test_errors": "test/errors",
    "test_nll": "test/nll",
    "agreement_with_its_teacher": "test/teacher_agreement",
    "train_seconds": "cost/train_seconds",
}
_HEAD = (
    "hop", "learnt from", "architecture", "models", "parameters", "MACs", "validation %",
    "test %", "errors", "NLL", "agreement with its teacher %",
)  # fmt: skip


def make_hop_table(metrics: pd.DataFrame) -> pd.DataFrame:
    """Line up the first teacher, the hops in their order and the twins of the last.

    Args:
        metrics: `hop_metrics`, a row per role and replicate.

    Returns:
        One row per role: role, learnt_from, architecture, num_models, the size of one model, means
        over models, and `test_accuracy_std` (NaN for a single one). A teacher of several members is
        one model. Nothing is said of an agreement where there was no teacher.
    """
    rows = []
    for role, models in metrics.groupby("role", sort=False):
        first = models.iloc[0]
        row = {"role": role, "learnt_from": first["learnt_from"]}
        row |= {"architecture": first["architecture"], "num_models": len(models)}
        row |= {name: first[source] for name, source in _SIZES.items()}
        row |= {name: models[source].mean() for name, source in _MEANS.items()}
        row["test_accuracy_std"] = models["test/accuracy"].std(ddof=1)
        if role in (FIRST_TEACHER, LABELS_ALONE):
            row["agreement_with_its_teacher"] = None
        rows.append(row)
    return pd.DataFrame(rows)


def markdown_hop_report(table: pd.DataFrame, comparison: Mapping[str, Any]) -> str:
    """Write the chain's outcome for a reader who was not there, null results included.

    Args:
        table: As `make_hop_table` gives it.
        comparison: As `metrics.hops.compare_hops` gives it.

    Returns:
        Markdown, ending in a newline.
    """
    rows = [list(_HEAD), ["---"] * 3 + ["---:"] * (len(_HEAD) - 3), *_cells(table)]
    sections = [
        "# Did the chain help?",
        "\n\n".join(_verdicts(comparison)),
        "## Hops",
        "\n".join(f"| {' | '.join(row)} |" for row in rows),
        "## What this rests on",
        "\n".join(f"- {line}" for line in _method(comparison)),
    ]
    return "\n\n".join(sections) + "\n"


def terminal_hop_table(
    table: pd.DataFrame, comparison: Mapping[str, Any], report_path: str | None
) -> str:
    """Say the same in short for a terminal: plain text, columns aligned by spaces.

    Args:
        table: As `make_hop_table` gives it.
        comparison: As `metrics.hops.compare_hops` gives it.
        report_path: Where the whole report lies; None says nothing of it.
    """
    kept = [0, 1, 4, 7, 8, 9, 10]
    rows = [[row[at] for at in kept] for row in [list(_HEAD), *_cells(table)]]
    verdicts = [verdict.replace("**", "") for verdict in _verdicts(comparison)]
    where = [] if report_path is None else ["", f"Report: {report_path}"]
    return "\n".join([*aligned(rows), "", *verdicts, *where])


def _cells(table: pd.DataFrame) -> list[list[str]]:
    return [_row(row) for row in table.astype(object).where(table.notna(), None).to_dict("records")]


def _row(row: Mapping[str, Any]) -> list[str]:
    def shown(name: str, spelling: str, scale: float = 1) -> str:
        return numbers.NOTHING if row[name] is None else format(scale * row[name], spelling)

    spread = {"mean": row["test_accuracy"], "std": row["test_accuracy_std"]}
    return [
        str(row["role"]),
        str(row["learnt_from"] or numbers.NOTHING),
        str(row["architecture"] or numbers.NOTHING),
        shown("num_models", "d"),
        shown("parameters", ",.0f"),
        shown("macs", ",.0f"),
        shown("validation_accuracy", ".2f", 100),
        numbers.percent(spread),
        shown("test_errors", ".1f").removesuffix(".0"),
        shown("test_nll", ".3f"),
        shown("agreement_with_its_teacher", ".2f", 100),
    ]


def _verdicts(comparison: Mapping[str, Any]) -> list[str]:
    gains, last = comparison["gains"], comparison["last"]
    told = [
        _verdict(last, twin, gains[f"over_{twin}"])
        for twin in (DIRECT, LABELS_ALONE)
        if f"over_{twin}" in gains
    ]
    if f"over_{DIRECT}" not in gains:
        told.append("There is one hop, which learns from the first teacher: there is no detour.")
    if not comparison["method"]["teacher_measured"]:
        told.append(
            "The first teacher has no row: its logits were imported and do not cover the test set. "
            "What it reaches there, and how closely those that learn from it follow it, are not "
            "known."
        )
    return told


def _verdict(last: str, twin: str, gain: Mapping[str, Any]) -> str:
    accuracy, nll = gain["accuracy"], gain["nll"]
    subject = {DIRECT: "The detour", LABELS_ALONE: f"What {last} learnt from its teacher"}[twin]
    found = (
        f"{last} over {_WORDS[twin]} ({twin}): {numbers.points(accuracy)} points of accuracy, "
        f"{numbers.level(accuracy)} interval {numbers.points_interval(accuracy)}; better in "
        f"{accuracy['wins']} of {accuracy['replicates']} replicates"
    )
    answers = {
        1: f"**{subject} helped**",
        -1: f"**{subject} hurt**",
        0: f"**No evidence that {subject[0].lower()}{subject[1:]} helped or hurt**",
    }
    likelihood = {
        -1: "Its NLL is better",
        1: "Its NLL is worse",
        0: "Its NLL is not shown to differ",
    }
    return (
        f"{answers[numbers.side_of_zero(accuracy)]}: {found}. "
        f"{likelihood[numbers.side_of_zero(nll)]}: {numbers.nats(nll)} nats."
    )


def _method(comparison: Mapping[str, Any]) -> Sequence[str]:
    method = comparison["method"]
    replicates = method["num_replicates"]
    over = "replicates and test examples" if replicates > 1 else "test examples"
    lines = [
        f"{method['num_test_examples']:,} test examples, read once, after all training.",
        f"{replicates} replicate(s) of the last hop and of its twins. Replicate r has the same "
        "initial weights, views and number of steps in each; ± is the standard deviation over "
        "models, each measured by itself.",
        f"Intervals: paired bootstrap over {over}, {method['num_bootstrap_samples']:,} samples; "
        "not corrected for the number of comparisons.",
        "The first teacher and the hops between were trained once: all of it is conditional on "
        "them, and on this split of the data. Another assistant may give another answer.",
        "A hop's teacher is all models of the hop before it, mixed.",
    ]
    if replicates == 1:
        lines.insert(2, "**With one replicate nothing is known of other seeds**: the intervals "
                     "cover the choice of test examples only, and are too narrow.")  # fmt: skip
    if not method["teacher_data_known"]:
        lines.insert(0, "The teacher was given and does not say what it was trained on: that it "
                     "never saw these test images cannot be verified.")  # fmt: skip
    return lines
