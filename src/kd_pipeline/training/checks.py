"""What can be known to fail before anything trains, because models and arms are only built."""

from collections.abc import Mapping, Sequence
from typing import Any

from kd_pipeline.data.splits import ids_with_role
from kd_pipeline.errors import ParameterError
from kd_pipeline.models.classifier import Classifier
from kd_pipeline.models.predict import resolve_device
from kd_pipeline.training.data import TrainingData
from kd_pipeline.training.optimisation import build_optimiser, build_schedule
from kd_pipeline.training.settings import TrainingSettings
from kd_pipeline.training.students import untrained
from kd_pipeline.training.teachers import adopt_given, initial_teacher


def check_teacher(
    data: TrainingData,
    *,
    model: Mapping[str, Any] | None,
    pretrained: Mapping[str, Any] | None,
    settings: TrainingSettings | None,
    given: Sequence[Mapping[str, Any]],
) -> None:
    """Build the teacher that is to be trained, or read the given one.

    Raises:
        ParameterError: With a name that begins with `teacher`.
        DataError: If imported logits are not finite or leave out examples of the transfer set.
        CheckpointError: If a given teacher or pretrained weights cannot be used.
    """
    try:
        if given:
            adopt_given(data, given)
        elif model is not None and settings is not None:
            _check_training(initial_teacher(data, model, pretrained, seed=0), settings)
    except ParameterError as error:
        raise error.within("teacher") from error


def check_student(
    data: TrainingData,
    *,
    model: Mapping[str, Any],
    settings: TrainingSettings,
    block: str = "student",
) -> None:
    """Build the student that all arms, or one hop of a chain, are to train.

    Raises:
        ParameterError: With a name that begins with the block's.
    """
    try:
        preprocessing = data.measure(ids_with_role(data.splits, "validation"))
        _check_training(untrained(data, model, preprocessing)(0), settings)
    except ParameterError as error:
        raise error.within(block) from error


def _check_training(classifier: Classifier, settings: TrainingSettings) -> None:
    try:
        resolve_device(settings.device)
        optimiser = build_optimiser(classifier.parameters(), **settings.optimiser)
        build_schedule(optimiser, num_steps=settings.num_epochs, **settings.schedule)
    except ParameterError as error:
        raise error.within("training") from error
