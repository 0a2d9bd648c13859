"""Nodes of a sweep: one search per arm, then what all of them came to."""

import logging
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kd_pipeline.soft_targets.settings import SoftTargetsParams
from kd_pipeline.sweep.settings import SweepParams
from kd_pipeline.training.settings import ArmParams, StudentParams
from kd_pipeline.views.settings import ViewsParams

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

    from kd_pipeline.data.images import ImageSet
    from kd_pipeline.memory import MemoryBudget
    from kd_pipeline.soft_targets.store import SoftTargets
    from kd_pipeline.sweep.search import ArmSearch
else:  # Kedro resolves every hint of a node to validate its parameters; these would import torch.
    DataFrame = Figure = ImageSet = MemoryBudget = SoftTargets = ArmSearch = object

logger = logging.getLogger(__name__)

Searches = list[ArmSearch]
"""One; none for an arm that `sweep.arms` leaves out, and from a process that runs one shard."""


def make_search(name: str) -> Callable[..., Searches]:
    """Make the node function that searches the settings of the arm of this name."""

    def search(
        images: ImageSet,
        examples: DataFrame,
        splits: DataFrame,
        trial_folder: Path,
        memory_budget: MemoryBudget,
        sweep: SweepParams,
        student: StudentParams,
        arm: ArmParams,
        views: ViewsParams,
        soft_target_params: SoftTargetsParams,
        soft_targets: SoftTargets | None = None,
        teacher_card: Mapping[str, Any] | None = None,
    ) -> Searches:
        """Search an arm, from a cache or from labels alone; no row of the test set is read."""
        if name not in sweep.arms:
            return []
        from kd_pipeline.data.dataset import LabelledImages, without_test_labels
        from kd_pipeline.models.architectures import code_digest
        from kd_pipeline.shards import find_shard
        from kd_pipeline.sweep.search import run_left, search_arm
        from kd_pipeline.sweep.trials import ArmTrials
        from kd_pipeline.training.students import train_students
        from kd_pipeline.training.teacher_sources import CachedTeacher

        data = LabelledImages(images, without_test_labels(examples, splits), splits)
        teacher = None
        if soft_targets is not None and teacher_card is not None:
            teacher = CachedTeacher(soft_targets, soft_target_params, teacher_card["fingerprints"])
        logged = {"soft_targets": soft_target_params.model_dump(mode="json")}
        # As the stage `student_distillation` does.
        train = partial(
            train_students,
            data,
            views=views,
            teacher=teacher,
            parameters=logged,
            budget=memory_budget,
        )
        facts = {**data.labelled_provenance, "views": views.model_dump(mode="json"), **logged}
        if (code := code_digest(student.model.name)) is not None:
            facts["code"] = code  # Of a user's own network.
        taught_by: dict[str, Any] = {"teacher": teacher.fingerprints if teacher else ()}
        if teacher is not None:
            taught_by["cache"] = teacher.cache_digest
        shard = find_shard(sweep, block="sweep")
        trials = ArmTrials(name, sweep, student, arm, facts, taught_by, train, trial_folder, shard)
        if shard is None:
            return [search_arm(trials)]
        run_left(trials)
        return []

    return search


def tabulate_trials(sweep: SweepParams, **searches: Searches) -> tuple[DataFrame, DataFrame]:
    """List all trials, and the best values of each arm beside those of the preset."""
    from kd_pipeline.sweep.results import best_values_table, trial_table

    found = _whole(sweep, searches)
    return trial_table(found), best_values_table(found, sweep)


def draw_sweep(sweep: SweepParams, **searches: Searches) -> tuple[Figure, Figure, Figure]:
    """Draw the history of each search, the parameters' importances, and slices through them."""
    from kd_pipeline.evaluation import sweep_figures
    from kd_pipeline.sweep.results import trial_table

    found = _whole(sweep, searches)
    trials, ranges = trial_table(found), sweep.parameters
    log = [name for name, span in ranges.items() if span.log]
    return (
        sweep_figures.history_figure(trials, sweep.metric, maximised=sweep.maximised),
        sweep_figures.importance_figure({one.arm: one.importances for one in found}),
        sweep_figures.slice_figure(trials, sweep.metric, list(ranges), log=log),
    )


def write_sweep_preset(
    parameters: Mapping[str, Any], presets: Path, sweep: SweepParams, **searches: Searches
) -> str:
    """Write the best values as a preset, and return its text."""
    from kd_pipeline.sweep.results import write_preset

    return write_preset(presets, parameters, _whole(sweep, searches), sweep)


def _whole(sweep: SweepParams, searches: Mapping[str, Searches]) -> Searches:
    """The searches of all arms.

    Raises:
        SystemExit: With code 0, from a process that runs the trials of one shard: what they came to
            is for a run of this stage without shards.
    """
    from kd_pipeline.shards import find_shard

    if (shard := find_shard(sweep, block="sweep")) is not None:
        logger.info(
            "Shard %s has run its trials; `kedro run --pipelines=sweep` without shards sums up all",
            shard.name,
        )
        raise SystemExit(0)
    return [one for found in searches.values() for one in found]
