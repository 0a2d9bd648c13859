"""Nodes of soft-target caching, and of the inspection of a cache, which no student reads."""

from typing import TYPE_CHECKING

from kd_pipeline.labelling.settings import SoftTargetCachingParams
from kd_pipeline.soft_targets.settings import SoftTargetsParams
from kd_pipeline.training.settings import TeacherParams
from kd_pipeline.views.settings import ViewsParams

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

    from kd_pipeline.data.images import ImageSet
    from kd_pipeline.memory import MemoryBudget
    from kd_pipeline.models.checkpoint import ModelCheckpoint
    from kd_pipeline.soft_targets.parts_folder import PartsFolder
    from kd_pipeline.soft_targets.store import SoftTargets
else:  # Kedro resolves every hint of a node to validate its parameters; these would import torch.
    DataFrame = Figure = ImageSet = MemoryBudget = object
    ModelCheckpoint = PartsFolder = SoftTargets = object


def cache_soft_targets(
    checkpoints: list[ModelCheckpoint],
    images: ImageSet,
    examples: DataFrame,
    splits: DataFrame,
    parts: PartsFolder,
    teacher: TeacherParams,
    caching: SoftTargetCachingParams,
    views: ViewsParams,
    soft_target_params: SoftTargetsParams,
) -> SoftTargets:
    """Label every view of the transfer set with every member's logits.

    Logits are kept, not probabilities, so that temperature stays the student's choice. The teacher
    is first measured on validation, its members averaged as by `soft_target_params`: one below a
    least accuracy is refused, and the temperature that fits it best is kept beside the logits.
    Where its logits were computed elsewhere there are no `checkpoints`, and
    `teacher` names the file. The store is made in `parts`, from what an interrupted run has left.

    Raises:
        SystemExit: With code 0, from a process that labels one shard: later nodes are for a run
            of this stage without shards.
    """
    from kd_pipeline.data.dataset import LabelledImages
    from kd_pipeline.labelling.members import read_given_logits
    from kd_pipeline.labelling.soft_targets import label_shard, label_transfer_set
    from kd_pipeline.labelling.validation import validate_teacher
    from kd_pipeline.shards import find_shard

    data = LabelledImages(images, examples, splits)
    members = checkpoints or read_given_logits(teacher.given_logits, data)
    calibration = validate_teacher(members, data, caching, soft_target_params)
    if (shard := find_shard(caching, block="soft_target_caching")) is not None:
        label_shard(shard, members, data, parts, caching, views, calibration)
        raise SystemExit(0)
    return label_transfer_set(members, data, parts, caching, views, calibration)


def summarise_soft_targets(
    soft_targets: SoftTargets,
    examples: DataFrame,
    soft_target_params: SoftTargetsParams,
    memory_budget: MemoryBudget,
) -> tuple[DataFrame, DataFrame, Figure, Figure]:
    """Describe how soft the soft targets are, how often right, and which classes are confused.

    All labels count, whether or not a student may use them.

    Returns:
        The summary, the confusable pairs, and the figures of entropy and of confidence.
    """
    from kd_pipeline.evaluation.soft_target_figures import confidence_figure, entropy_figure
    from kd_pipeline.soft_targets import inspection

    sample = inspection.sample(soft_targets, soft_target_params, memory_budget)
    labels = inspection.known_labels(examples)
    table = inspection.summarise(sample, labels)
    histogram = inspection.confidence_histogram(sample, labels)
    temperature = float(table["confidence_temperature"].iloc[0])
    return (
        table,
        inspection.most_confusable_pairs(sample, labels),
        entropy_figure(table),
        confidence_figure(histogram, temperature=temperature),
    )


def draw_soft_targets(
    soft_targets: SoftTargets,
    images: ImageSet,
    examples: DataFrame,
    soft_target_params: SoftTargetsParams,
    memory_budget: MemoryBudget,
    views: ViewsParams,
) -> Figure:
    """Draw some views as they were labelled, beside their most likely classes."""
    from kd_pipeline.evaluation.soft_target_figures import grid_figure, render_picks
    from kd_pipeline.soft_targets import inspection
    from kd_pipeline.views import ViewRenderer

    sample = inspection.sample(soft_targets, soft_target_params, memory_budget)
    picks = inspection.pick_examples(sample, inspection.known_labels(examples))
    pixels = images.reader(soft_targets.example_ids, device="cpu")
    pictures = render_picks(picks, ViewRenderer(views.policy, pixels, partners=pixels))
    return grid_figure(picks, pictures, images.class_names)
