"""Nodes of evaluation. torch and matplotlib are imported only when a node runs."""

from typing import TYPE_CHECKING, Any

import pandas as pd

from kd_pipeline.evaluation.comparison import compare
from kd_pipeline.evaluation.report import markdown_report
from kd_pipeline.evaluation.settings import EvaluationParams
from kd_pipeline.soft_targets.settings import SoftTargetsParams

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from kd_pipeline.data.images import ImageSet
    from kd_pipeline.models.checkpoint import ModelCheckpoint
else:  # Kedro resolves every hint of a node to validate its parameters; these would import torch.
    Figure = ImageSet = ModelCheckpoint = object


def evaluate_models(
    images: ImageSet,
    examples: pd.DataFrame,
    splits: pd.DataFrame,
    params: EvaluationParams,
    mixing: SoftTargetsParams,
    teacher: list[ModelCheckpoint],
    **students: list[ModelCheckpoint],
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read the test set, once, with the teacher and every replicate of every arm.

    Args:
        images: The pixels.
        examples: The labels.
        splits: Whose role `test` is read, every row of it.
        params: `evaluation` in parameters_evaluation.yml.
        mixing: `soft_targets` in parameters_soft_target_caching.yml: how members are mixed.
        teacher: Its members; several are evaluated as one mixed model.
        students: The replicates of each arm, by the arm's name.

    Returns:
        `predictions`, one row per role, replicate and example, and `metrics`, one row per role
        and replicate.

    Raises:
        StaleArtefactError: If a checkpoint was made from other data than is at hand.
    """
    from kd_pipeline.data.splits import split_fingerprint
    from kd_pipeline.evaluation.freshness import check_fresh
    from kd_pipeline.evaluation.test_set import TestReader, read_test_set
    from kd_pipeline.soft_targets.ensemble import Mixing

    members = Mixing(mixing.mixing, mixing.member_weights)
    check_fresh(
        teacher,
        students,
        images=images.fingerprint,
        splits=split_fingerprint(splits),
        class_names=images.class_names,
        mixture=members.described(len(teacher)),
    )
    reader = TestReader(
        images,
        examples,
        splits,
        batch_size=params.batch_size,
        device=params.device,
        precision=params.precision,
        num_bins=params.num_calibration_bins,
    )
    return read_test_set(reader, teacher, students, mixing=members)


def compare_arms(
    predictions: pd.DataFrame, metrics: pd.DataFrame, params: EvaluationParams
) -> dict[str, Any]:
    """Measure every arm against the baseline, in pairs.

    Args:
        predictions: As `evaluate_models` gives them.
        metrics: As `evaluate_models` gives them.
        params: `evaluation` in parameters_evaluation.yml.
    """
    return compare(
        predictions,
        metrics,
        num_samples=params.num_bootstrap_samples,
        confidence_level=params.confidence_level,
        seed=params.seed,
    )


def draw_figures(
    predictions: pd.DataFrame, comparison: dict[str, Any], examples: pd.DataFrame
) -> tuple[Figure, Figure, Figure, Figure]:
    """Draw accuracy with intervals, reliability, confusion and the gain per class.

    Args:
        predictions: As `evaluate_models` gives them.
        comparison: As `compare_arms` gives it.
        examples: For the names of the classes.
    """
    from kd_pipeline.evaluation import figures

    named = examples.dropna(subset="label").drop_duplicates("label").sort_values("label")
    class_names = tuple(named["class_name"].astype(str))
    return (
        figures.accuracy_figure(comparison),
        figures.reliability_figure(predictions),
        figures.confusion_figure(predictions, class_names),
        figures.class_gain_figure(predictions, class_names),
    )


def write_report(comparison: dict[str, Any], metrics: pd.DataFrame) -> str:
    """State the result in words, null results included.

    Args:
        comparison: As `compare_arms` gives it.
        metrics: As `evaluate_models` gives them.
    """
    return markdown_report(comparison, metrics)
