"""How a loss over all classes is computed from the teacher's best k and their tail."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from kd_pipeline.teacher_logits import TeacherLogits, tail_logit, with_tail

ReadTopK = Callable[[Tensor, TeacherLogits[Tensor], float], tuple[Tensor, Tensor]]
"""Maps student logits, the teacher's top k and the temperature to two logits of one shape."""


def gather_other_classes(
    student_logits: Tensor, teacher: TeacherLogits[Tensor], temperature: float
) -> tuple[Tensor, Tensor]:
    """Gather all classes beyond the teacher's top k into one, on both sides.

    The softmax of each result at the temperature is the distribution over k classes and "any
    other", exactly; how the student shares its mass among the others is left to the labels.

    Returns:
        The student's and the teacher's logits, each [batch, k + 1], all other classes last.
    """
    if teacher.class_ids is None:
        return student_logits, teacher.logits
    # In float32: half precision loses the small probabilities that are added up.
    student = student_logits.float()
    top = student.gather(1, teacher.class_ids)
    tail = tail_logit(student, teacher.class_ids, temperature=temperature)
    return torch.cat([top, tail[:, None]], dim=1), with_tail(teacher)


def keep_listed_classes(
    student_logits: Tensor, teacher: TeacherLogits[Tensor], _temperature: float
) -> tuple[Tensor, Tensor]:
    """Give no class beyond the top k any mass, for a loss that needs the best class alone.

    Returns:
        The student's logits as they are, and the teacher's, minus infinity beyond the top k.
    """
    if teacher.class_ids is None:
        return student_logits, teacher.logits
    nothing = torch.full_like(student_logits, -math.inf, dtype=teacher.logits.dtype)
    return student_logits, nothing.scatter(1, teacher.class_ids, teacher.logits)


def spread_tail(
    teacher: TeacherLogits[Tensor], *, num_classes: int, temperature: float
) -> TeacherLogits[Tensor]:
    """Share the tail's mass evenly among the classes beyond the top k.

    Returns:
        Logits of all classes, which hold at this temperature alone.
    """
    if teacher.class_ids is None or teacher.tail_logits is None:
        return teacher
    num_others = num_classes - teacher.class_ids.shape[1]
    each = teacher.tail_logits - temperature * math.log(num_others)
    spread = each[:, None].expand(-1, num_classes)
    return TeacherLogits(spread.scatter(1, teacher.class_ids, teacher.logits))
