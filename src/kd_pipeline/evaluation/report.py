"""The report in Markdown: the result in words, tables, what the result rests on.

Each section is a function of the comparison; the tables are those of `tables`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from kd_pipeline.evaluation import tables
from kd_pipeline.evaluation.calibrated import calibration_answer
from kd_pipeline.evaluation.roles import BASELINE, label
from kd_pipeline.evaluation.verdict import verdict

_Json = Mapping[str, Any]

_FIGURES = {
    "Accuracy of every replicate, and the gain over hard labels": "figures/accuracy_figure.png",
    "Calibration": "figures/reliability_figure.png",
    "Confusion": "figures/confusion_figure.png",
    "Gain per class": "figures/class_gain_figure.png",
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
        tables.markdown(tables.arms_rows(comparison)),
        "## Figures",
        "\n\n".join(f"![{title}]({file})" for title, file in _FIGURES.items()),
        *calibration_section(comparison),
        *replicates_section(comparison),
        *cost_section(comparison),
        "## What this rests on",
        "\n".join(f"- {line}" for line in [*method_lines(comparison), *about_labels]),
        "Files for devices, where a run has exported any, are in export_report.md.",
    ]
    return "\n\n".join(sections) + "\n"


def calibration_section(comparison: _Json) -> list[str]:
    """NLL and ECE before and after one temperature per model."""
    return [
        "## Calibration",
        *calibration_answer(comparison),
        tables.markdown(tables.calibration_rows(comparison)),
    ]


def replicates_section(comparison: _Json) -> list[str]:
    """Each replicate by itself; nothing where nothing is compared."""
    if not comparison["gains"]:
        return []
    return [
        "## Replicate by replicate",
        f"Test images that only the arm classifies correctly / that only {label(BASELINE)} does, "
        "and the p-value of McNemar's exact test. It is of the two models of a replicate: it says "
        "nothing on other seeds, and is not adjusted for the number of tests.",
        tables.markdown(tables.replicate_rows(comparison)),
    ]


def cost_section(comparison: _Json) -> list[str]:
    """Seconds of teacher, cache and student."""
    return [
        "## Cost",
        "Seconds on the machines where each was made. `one student` is the mean of the replicates. "
        "Teacher and cache are paid once for any number of students. A dash is not on record, as "
        "for a given teacher.",
        tables.markdown(tables.cost_rows(comparison)),
    ]


def method_lines(comparison: _Json) -> list[str]:
    """What the result rests on."""
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
        *_families(comparison),
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


def _families(comparison: _Json) -> list[str]:
    """Which tests are adjusted for their number, and what stands beside null results."""
    method, controls = comparison["method"], len(comparison["distilled_over"])
    power, level = 100 * method["power"], 100 * (1 - method["confidence_level"])
    return [
        f"{method['num_comparisons']} arm(s) were compared with {label(BASELINE)}: their gains in "
        "accuracy are one family of tests. p (Holm) is adjusted for their number, and a gain "
        f"counts as shown where it is below {level:g} %; p and the intervals are not corrected. "
        f"Nor are the distilled arm's comparisons with {controls} control(s), or any of NLL.",
        "The smallest difference that a run could have shown is the true one for which the spread "
        f"found here gives a significant result with a probability of {power:g} %.",
    ]
