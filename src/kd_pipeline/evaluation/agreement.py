"""How closely a student follows its teacher, whatever the labels say."""

from torch import Tensor
from torch.nn import functional

from kd_pipeline.errors import DataError

AGREEMENT_METRICS = ("test/teacher_agreement", "test/teacher_kl")


def agreement_metrics(student_logits: Tensor, teacher_logits: Tensor) -> dict[str, float]:
    """Measure fidelity to the teacher (Stanton et al. 2021, arXiv:2106.05945).

    Args:
        student_logits: float [num_examples, num_classes].
        teacher_logits: Same shape.

    Returns:
        `test/teacher_agreement`: share of examples on which both predict the same class.
        `test/teacher_kl`: mean KL(teacher || student) in nats, at temperature 1.

    Raises:
        DataError: If the shapes differ.
    """
    if student_logits.shape != teacher_logits.shape:
        raise DataError(
            "`student_logits` and `teacher_logits` must have the same shape, got "
            f"{tuple(student_logits.shape)} and {tuple(teacher_logits.shape)}"
        )
    student, teacher = (
        functional.log_softmax(logits.double(), dim=1)
        for logits in (student_logits, teacher_logits)
    )
    agree = student_logits.argmax(dim=1) == teacher_logits.argmax(dim=1)
    divergence = functional.kl_div(student, teacher, reduction="batchmean", log_target=True)
    return {
        "test/teacher_agreement": agree.double().mean().item(),
        # Rounding leaves about -1e-17 where the two are equal.
        "test/teacher_kl": max(0.0, divergence.item()),
    }
