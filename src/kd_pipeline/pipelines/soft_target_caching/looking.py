"""Nodes that look at the soft targets; no student reads what they make."""

from typing import TYPE_CHECKING

import pandas as pd

from kd_pipeline.soft_targets.settings import SoftTargetsParams
from kd_pipeline.views.settings import ViewsParams

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from kd_pipeline.data.images import ImageSet
    from kd_pipeline.soft_targets.store import SoftTargets
else:  # Kedro resolves every hint of a node to validate its parameters; these would import torch.
    Figure = ImageSet = SoftTargets = object


def summarise_soft_targets(
    soft_targets: SoftTargets, examples: pd.DataFrame, reading: SoftTargetsParams
) -> tuple[pd.DataFrame, pd.DataFrame, Figure, Figure]:
    """Describe how soft the soft targets are, how often right, and which classes look alike.

    Args:
        soft_targets: The cache.
        examples: The labels, whether or not a student may use them.
        reading: `soft_targets` in parameters_soft_target_caching.yml: how members are mixed.

    Returns:
        The summary, the confusable pairs, and the figures of entropy and of confidence.
    """
    from kd_pipeline.evaluation.soft_target_figures import confidence_figure, entropy_figure
    from kd_pipeline.soft_targets.confusions import most_confusable_pairs
    from kd_pipeline.soft_targets.ensemble import Mixing
    from kd_pipeline.soft_targets.summary import known_labels, summarise

    labels, mixing = known_labels(examples), Mixing(reading.mixing, reading.member_weights)
    summary = summarise(soft_targets, labels, mixing=mixing)
    pairs = most_confusable_pairs(soft_targets, labels, mixing=mixing)
    temperature = float(summary.table["confidence_temperature"].iloc[0])
    return (
        summary.table,
        pairs,
        entropy_figure(summary.table),
        confidence_figure(summary.confidences, temperature=temperature),
    )


def draw_soft_targets(
    soft_targets: SoftTargets,
    images: ImageSet,
    examples: pd.DataFrame,
    reading: SoftTargetsParams,
    views: ViewsParams,
) -> Figure:
    """Show some views as the teacher saw them beside what it said of them.

    Args:
        soft_targets: The cache.
        images: The pixels.
        examples: The labels.
        reading: `soft_targets` in parameters_soft_target_caching.yml.
        views: `views` in parameters_views.yml.
    """
    from kd_pipeline.evaluation.soft_target_figures import grid_figure, render_picks
    from kd_pipeline.soft_targets.ensemble import Mixing
    from kd_pipeline.soft_targets.gallery import pick_examples
    from kd_pipeline.soft_targets.summary import known_labels
    from kd_pipeline.views import ViewPolicy

    mixing = Mixing(reading.mixing, reading.member_weights)
    picks = pick_examples(soft_targets, known_labels(examples), mixing=mixing)
    pictures = render_picks(
        picks,
        images,
        policy=ViewPolicy(**views.policy_arguments()),
        partners=soft_targets.example_ids,
    )
    return grid_figure(picks, pictures, images.class_names)
