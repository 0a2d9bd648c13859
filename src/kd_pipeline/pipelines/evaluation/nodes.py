"""Nodes of evaluation. torch and matplotlib are imported only when a node runs."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kd_pipeline.evaluation.settings import EvaluationParams
from kd_pipeline.soft_targets.settings import SoftTargetsParams
from kd_pipeline.training.settings import TeacherParams

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

    from kd_pipeline.data.images import ImageSet
    from kd_pipeline.models.checkpoint import ModelCheckpoint
else:  # Kedro resolves every hint of a node to validate its parameters; these would import torch.
    DataFrame = Figure = ImageSet = ModelCheckpoint = object


def evaluate_models(
    images: ImageSet,
    examples: DataFrame,
    splits: DataFrame,
    params: EvaluationParams,
    soft_target_params: SoftTargetsParams,
    teacher_params: TeacherParams,
    teacher: list[ModelCheckpoint],
    **students: list[ModelCheckpoint],
) -> tuple[DataFrame, DataFrame]:
    """Read the test set, once, with the teacher and every replicate of every student.

    The teacher's members are evaluated as one model. Where its logits were computed elsewhere it
    has none, and `teacher_params` names the file.

    Returns:
        `predictions`, one row per role, replicate and example, and `metrics`, one row per role
        and replicate.

    Raises:
        StaleArtefactError: If a checkpoint was made from other data than is at hand.
    """
    from kd_pipeline.data.dataset import LabelledImages
    from kd_pipeline.evaluation.freshness import check_fresh
    from kd_pipeline.evaluation.test_set import read_test_set
    from kd_pipeline.labelling.members import read_given_logits

    data = LabelledImages(images, examples, splits)
    members = teacher or read_given_logits(teacher_params.given_logits, data)
    fingerprints = [member.fingerprint for member in members]
    check_fresh(fingerprints, teacher, students, data.labelled_provenance, soft_target_params)
    return read_test_set(data, members, students, params, soft_target_params)


def compare_arms(
    predictions: DataFrame,
    metrics: DataFrame,
    splits: DataFrame,
    params: EvaluationParams,
    run_identity: Mapping[str, str],
) -> dict[str, Any]:
    """Measure every arm against the baseline, in pairs.

    The result names the group and environment of this Kedro run, its `run_identity`.
    """
    from kd_pipeline.data.splits import count_training_examples
    from kd_pipeline.evaluation.comparison import compare

    count = count_training_examples(splits)
    return compare(predictions, metrics, params, run_identity, num_training_examples=count)


def draw_figures(
    predictions: DataFrame, comparison: dict[str, Any], examples: DataFrame
) -> tuple[Figure, Figure, Figure, Figure]:
    """Draw accuracy with intervals, reliability, confusion and the gain per class."""
    from kd_pipeline.evaluation import figures

    named = examples.dropna(subset="label").drop_duplicates("label").sort_values("label")
    class_names = tuple(named["class_name"].astype(str))
    return (
        figures.accuracy_figure(comparison),
        figures.reliability_figure(predictions),
        figures.confusion_figure(predictions, class_names),
        figures.class_gain_figure(predictions, comparison, class_names),
    )


def write_report(comparison: dict[str, Any], examples: DataFrame, splits: DataFrame) -> str:
    """State the result in words, null results included, and how many labels were used."""
    from kd_pipeline.evaluation.labels_used import describe_labels
    from kd_pipeline.evaluation.report import markdown_report

    return markdown_report(comparison, about_labels=describe_labels(examples, splits))


def write_page(report: str, **figures: bytes) -> str:
    """The report as one HTML file; `figures` are PNG files by their names in the catalog."""
    from kd_pipeline.evaluation.page import html_page

    return html_page(report, {f"figures/{name}.png": file for name, file in figures.items()})
