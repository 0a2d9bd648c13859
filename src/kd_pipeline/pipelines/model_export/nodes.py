"""Nodes of the export. torch, onnxruntime and matplotlib are imported only when a node runs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kd_pipeline.evaluation.settings import EvaluationParams
from kd_pipeline.export.settings import ModelExportParams

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

    from kd_pipeline.data.images import ImageSet
    from kd_pipeline.export.jobs import ExportedModel
    from kd_pipeline.models.checkpoint import ModelCheckpoint
    from kd_pipeline.tracking.store import Store
else:  # Kedro resolves every hint of a node to validate its parameters; these would import torch.
    DataFrame = Figure = ImageSet = ExportedModel = ModelCheckpoint = Store = object


def export_models(
    images: ImageSet,
    examples: DataFrame,
    splits: DataFrame,
    params: ModelExportParams,
    folder: Path,
    trained_models: Path,
    tracking_store: Store,
    after: str | None = None,  # noqa: ARG001
    **models: list[ModelCheckpoint],
) -> list[ExportedModel]:
    """Export models of this run, if that is enabled; the stage by itself, those of earlier runs.

    Earlier runs left theirs in `trained_models`; or `params.source` names another. `after` is what
    a whole run writes first.

    Returns:
        Their files, in a hidden folder of `folder`.
    """
    from kd_pipeline.data.dataset import LabelledImages
    from kd_pipeline.evaluation.freshness import check_paired
    from kd_pipeline.evaluation.test_set import labelled_test_rows
    from kd_pipeline.export import jobs, publish, selection
    from kd_pipeline.tracking.fetch import fetched

    data = LabelledImages(images, examples, splits)
    if models and not params.enabled:
        publish.warn_of_stale_files(folder, models)
        return []
    labelled_test_rows(data)
    chosen: Mapping[str, Sequence[ModelCheckpoint]]
    if models:
        chosen = selection.select_models(models, params)
    elif params.source is None:
        chosen = selection.read_models(trained_models, params)
    else:
        with fetched([params.source], tracking_store) as (download,):
            chosen = selection.read_source(params.source, data, download)
    check_paired(selection.compared(chosen))
    staging = publish.make_staging_folder(folder)
    return jobs.export_models(data, chosen, params, folder=staging)


def measure_exports(
    images: ImageSet,
    examples: DataFrame,
    splits: DataFrame,
    exported_models: list[ExportedModel],
    params: ModelExportParams,
    evaluation: EvaluationParams,
) -> tuple[DataFrame, DataFrame]:
    """Run every file, and the checkpoint it is of, over all test images.

    Returns:
        `export_predictions`, one row per file and example, and `export_metrics`, one per file.
    """
    from kd_pipeline.data.dataset import LabelledImages
    from kd_pipeline.evaluation.exported import measure_files
    from kd_pipeline.export.proof import run_models

    data = LabelledImages(images, examples, splits)
    return measure_files(data, run_models(data, exported_models, params), evaluation)


def compare_exports(
    predictions: DataFrame,
    metrics: DataFrame,
    exported_models: list[ExportedModel],
    params: ModelExportParams,
    evaluation: EvaluationParams,
) -> tuple[dict[str, Any], Figure]:
    """Summarise the files, compare what int8 costs each model, in pairs, and draw them.

    Raises:
        ExportError: If a file loses more accuracy than allowed: no file is published then, only
            its measurements are kept.
    """
    from kd_pipeline.evaluation.export_figures import export_figure
    from kd_pipeline.evaluation.exported import compare_files
    from kd_pipeline.export.publish import check_accuracy_drop

    learnt_from = {model.role: model.learnt_from for model in exported_models}
    comparison = compare_files(predictions, metrics, evaluation, learnt_from)
    check_accuracy_drop(comparison, params)
    return comparison, export_figure(comparison)


def publish_exports(
    images: ImageSet,
    examples: DataFrame,
    splits: DataFrame,
    exported_models: list[ExportedModel],
    predictions: DataFrame,
    comparison: dict[str, Any],
    figure: bytes,
    params: ModelExportParams,
    evaluation: EvaluationParams,
    folder: Path,
    tracking_store: Store,
    run_identity: Mapping[str, str],
) -> tuple[str, str]:
    """Move the files, which hold to their bounds, to `folder`, register one, and report.

    Returns:
        The report as Markdown and as HTML, which holds `figure`, a PNG file.
    """
    from kd_pipeline.data.dataset import LabelledImages
    from kd_pipeline.evaluation.export_report import FIGURE, export_report
    from kd_pipeline.evaluation.page import html_page
    from kd_pipeline.evaluation.paired import paired_difference
    from kd_pipeline.evaluation.test_set import describe_test_set
    from kd_pipeline.export.publish import publish, select_for_registry
    from kd_pipeline.tracking.registry import register_student

    data = LabelledImages(images, examples, splits)
    known = {"group": run_identity["group"], **describe_test_set(data)}
    cards = publish(exported_models, comparison, params, folder=folder, known=known)
    reason = None
    if params.registered_name is not None and cards:
        reason = register_student(
            tracking_store,
            **select_for_registry(cards, predictions, params, folder=folder),
            paired_interval=lambda arm, other: paired_difference(arm, other, evaluation)["ci95"],
            name=params.registered_name,
        ).reason
    report = export_report(comparison, reason)
    return report, html_page(report, {FIGURE: figure})
