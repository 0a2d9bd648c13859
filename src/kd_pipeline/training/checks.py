"""What can be known to fail before anything trains, because models and arms are only built."""

import logging
from collections.abc import Sequence

import torch

from kd_pipeline.data.dataset import LabelledImages
from kd_pipeline.errors import ParameterError
from kd_pipeline.losses.hard import NO_LABEL
from kd_pipeline.losses.objective import Objective
from kd_pipeline.losses.settings import ObjectiveParams, SoftWeightSchedule
from kd_pipeline.models.classifier import Classifier
from kd_pipeline.models.given import FetchedModel
from kd_pipeline.models.predict import resolve_device
from kd_pipeline.teacher_logits import TeacherLogits
from kd_pipeline.training.distributed import Processes, check_own_device, has_batch_norm
from kd_pipeline.training.initial import initial_model
from kd_pipeline.training.optimisation import build_optimiser, build_schedule, try_optimiser
from kd_pipeline.training.quantisation import fake_quantise
from kd_pipeline.training.rows import has_usable_labels
from kd_pipeline.training.settings import ArmParams, StudentParams, TeacherParams, Training
from kd_pipeline.training.teachers import adopt_given
from kd_pipeline.views import ViewPolicy, ViewRenderer
from kd_pipeline.views.settings import TransformParams

logger = logging.getLogger(__name__)


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


def check_views(
    data: LabelledImages, transforms: tuple[TransformParams, ...], *, block: str
) -> None:
    """Render a view of one image: some transforms need larger ones.

    Raises:
        ParameterError: With a name that begins with the block's.
    """
    pixels = data.images.reader(data.images.example_ids[:1], device="cpu")
    try:
        ViewRenderer(ViewPolicy(0, transforms), pixels, pixels).draw(torch.tensor([0]), 0).render()
    except ParameterError as error:
        raise error.within(block) from error


def check_student(data: LabelledImages, student: StudentParams, *, block: str = "student") -> None:
    """Build the student that all arms, or one of another size, are to train.

    Raises:
        ParameterError: With a name that begins with the block's.
        CheckpointError: If pretrained weights cannot be used.
    """
    try:
        if student.quantisation is not None and _shares_batches(student.training):
            rule = f"be null where {_SHARED}: each would measure other ranges"
            raise ParameterError("quantisation", rule, student.quantisation.name)
        ids = data.ids("validation")
        classifier = initial_model(data, student.model, student.pretrained, ids)(0)
        _check_training(classifier, student.training, data)
        if student.quantisation is not None:
            fake_quantise(classifier)
    except ParameterError as error:
        raise error.within(block) from error


def check_shared_loss(student: StudentParams, arm: ArmParams, *, block: str) -> None:
    """Refuse a loss over the batch where several processes have a slice of it each.

    Raises:
        ParameterError: With a name that begins with the block's.
    """
    compares = arm.soft_weight > 0 and arm.soft_loss.record.over_batch
    if compares and _shares_batches(student.training):
        rule = f"compare no examples of a batch where {_SHARED}"
        raise ParameterError(f"{block}.soft_loss", rule, arm.soft_loss.name)


def check_arm(data: LabelledImages, arm: ArmParams, *, block: str) -> None:
    """Try an arm's loss on three examples with this number of classes, one of them unlabelled.

    Raises:
        ParameterError: With a name that begins with the block's.
    """
    if arm.soft_weight == 0:
        return
    try:
        try_soft_loss(arm, num_classes=len(data.images.class_names))
        if arm.at_the_end().soft_weight == 0 and not has_usable_labels(data):
            rule = "be 1 where no student row has a label: nothing would teach after the stop"
            stop = arm.soft_weight_schedule.stop_fraction
            raise ParameterError("soft_weight_schedule.stop_fraction", rule, stop)
    except ParameterError as error:
        raise error.within(block) from error


def try_soft_loss(objective: ObjectiveParams, *, num_classes: int) -> None:
    """Compute a soft loss and its gradient on random logits.

    Raises:
        ParameterError: Naming `soft_loss`, if that fails or gives what is not finite.
    """
    name, generator = objective.soft_loss.name, torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(3, num_classes, generator=generator) for _ in range(2))
    student.requires_grad_()
    alone = {"soft_weight": 1.0, "soft_weight_schedule": SoftWeightSchedule()}
    minimised = Objective(objective.model_copy(update=alone))
    labels = torch.tensor([0, 1, NO_LABEL])
    try:
        loss = minimised(student, labels, TeacherLogits(teacher)).loss
        (gradient,) = torch.autograd.grad(loss, student)
    except ParameterError:
        raise
    except Exception as error:  # Of any kind, from inside a user's own function.
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        rule = f"be computed and differentiated ({reason})"
        raise ParameterError("soft_loss", rule, name) from error
    if not (torch.isfinite(loss) and torch.isfinite(gradient).all()):
        raise ParameterError("soft_loss", "be finite, and its gradients too", name)


def _check_training(classifier: Classifier, training: Training, data: LabelledImages) -> None:
    _check_logits(classifier, data)
    try:
        device = resolve_device(training.device)
        if Processes.joined().count > 1:
            check_own_device(device)
            _check_slices(classifier, training)
        optimiser = build_optimiser(classifier.parameters(), training.optimiser)
        build_schedule(optimiser, training.schedule, num_steps=training.num_epochs)
        try_optimiser(classifier.network, training.optimiser)
    except ParameterError as error:
        raise error.within("training") from error


_SHARED = "several processes share a batch (`training.placement: data_parallel`)"


def _shares_batches(training: Training) -> bool:
    return Processes.joined().count > 1 and training.placement == "data_parallel"


def _check_slices(classifier: Classifier, training: Training) -> None:
    """Refuse slices that are too small; warn where what is trained depends on their number."""
    if not _shares_batches(training):
        return
    processes, normalises = Processes.joined(), has_batch_norm(classifier)
    least = processes.count * (2 if normalises else 1)
    if training.batch_size < least:
        rule = f"be at least {least} in {processes.count} processes"
        raise ParameterError("batch_size", rule, training.batch_size)
    if normalises and processes.is_first:
        logger.warning(
            "batch norm: each of %d processes normalises by its slice of a batch, and the running "
            "statistics kept are those of process 0: weights will differ from those of one process",
            processes.count,
        )


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
