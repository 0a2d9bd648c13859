"""What can be known to fail before anything trains, because models and arms are only built."""

from collections.abc import Sequence

import torch

from kd_pipeline.data.dataset import LabelledImages
from kd_pipeline.errors import ParameterError
from kd_pipeline.models.classifier import Classifier
from kd_pipeline.models.given import FetchedModel
from kd_pipeline.models.predict import resolve_device
from kd_pipeline.training.initial import initial_model
from kd_pipeline.training.optimisation import build_optimiser, build_schedule
from kd_pipeline.training.quantisation import fake_quantise
from kd_pipeline.training.settings import StudentParams, TeacherParams, Training
from kd_pipeline.training.teachers import adopt_given


def check_teacher(
    data: LabelledImages, params: TeacherParams, fetched: Sequence[FetchedModel | None]
) -> None:
    """Build the teacher that is to be trained, or read the given one.

    Raises:
        ParameterError: With a name that begins with `teacher`.
        CheckpointError: If a given teacher or pretrained weights cannot be used.
    """
    try:
        if params.given:
            adopt_given(data, params.given, fetched)
        elif params.model is not None and params.training is not None:
            ids = data.ids("teacher_train")
            initial = initial_model(data, params.model, params.pretrained, ids)
            _check_training(initial(0), params.training, data)
    except ParameterError as error:
        raise error.within("teacher") from error


def check_student(data: LabelledImages, student: StudentParams, *, block: str = "student") -> None:
    """Build the student that all arms, or one of another size, are to train.

    Raises:
        ParameterError: With a name that begins with the block's.
        CheckpointError: If pretrained weights cannot be used.
    """
    try:
        ids = data.ids("validation")
        classifier = initial_model(data, student.model, student.pretrained, ids)(0)
        _check_training(classifier, student.training, data)
        if student.quantisation is not None:
            fake_quantise(classifier)
    except ParameterError as error:
        raise error.within(block) from error


def _check_training(classifier: Classifier, training: Training, data: LabelledImages) -> None:
    _check_logits(classifier, data)
    try:
        resolve_device(training.device)
        optimiser = build_optimiser(classifier.parameters(), training.optimiser)
        build_schedule(optimiser, training.schedule, num_steps=training.num_epochs)
    except ParameterError as error:
        raise error.within("training") from error


def _check_logits(classifier: Classifier, data: LabelledImages) -> None:
    """Try two images: a user's own class need not give a logit per class, nor take this size."""
    pixels = data.images.take(data.ids("validation")[:2])
    wanted = (len(pixels), len(data.images.class_names))
    try:
        with torch.no_grad():
            logits = classifier.eval()(pixels)
    except Exception as error:  # Of any kind, from inside the network.
        shape = " x ".join(map(str, classifier.preprocessing.shape))
        rule = f"take images of {shape} ({next(iter(str(error).splitlines()), '')})"
        raise ParameterError("model", rule, type(classifier.network).__name__) from error
    found = tuple(getattr(logits, "shape", ()))
    if found != wanted:
        raise ParameterError("model", f"give a logit for each of {wanted[1]} classes", found)
