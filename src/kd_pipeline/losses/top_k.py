"""A teacher of which only the top k classes are known, and what is made of the rest.

At 1000 classes and temperature 4 the ten best classes hold 6 % of the probability: the tail
must not be dropped. `TopKLogits` knows its mass at one temperature, the one it was cached at.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class TopKLogits:
    """The teacher's k largest logits of each example, and one logit for all other classes."""

    class_ids: Tensor
    """int64 [batch, k]"""
    logits: Tensor
    """float32 [batch, k], free of any temperature."""
    tail_logits: Tensor
    """float32 [batch]: temperature x logsumexp of the other logits / temperature."""
    temperature: float
    """At which `tail_logits` hold."""


def ghost_buckets(student_logits: Tensor, teacher: TopKLogits) -> tuple[Tensor, Tensor]:
    """Gather all classes beyond the teacher's top k into one bucket, on both sides.

    The softmax of each result at the teacher's temperature is the distribution over k classes
    and "any other", exactly: what the student does among the others is left to the labels.

    Args:
        student_logits: [batch, num_classes].
        teacher: Of the same examples.

    Returns:
        The student's and the teacher's logits, each [batch, k + 1], the bucket last.
    """
    # In float32: half precision loses the small probabilities that the bucket adds up.
    student = student_logits.float()
    top = student.gather(1, teacher.class_ids)
    others = student.scatter(1, teacher.class_ids, -math.inf)
    tail = teacher.temperature * torch.logsumexp(others / teacher.temperature, dim=1)
    return (
        torch.cat([top, tail[:, None]], dim=1),
        torch.cat([teacher.logits, teacher.tail_logits[:, None]], dim=1),
    )


def spread_tail(teacher: TopKLogits, *, num_classes: int) -> Tensor:
    """Share the tail's mass out evenly among the classes beyond the top k.

    Returns:
        Logits float32 [batch, num_classes], true at the teacher's temperature alone.
    """
    num_others = num_classes - teacher.class_ids.shape[1]
    each = teacher.tail_logits - teacher.temperature * math.log(num_others)
    spread = each[:, None].expand(-1, num_classes)
    return spread.scatter(1, teacher.class_ids, teacher.logits)


def without_tail(teacher: TopKLogits, *, num_classes: int) -> Tensor:
    """Give no other class any mass, for what asks for nothing but the best one.

    Returns:
        Logits float32 [batch, num_classes], minus infinity beyond the top k.
    """
    nothing = teacher.logits.new_full((len(teacher.logits), num_classes), -math.inf)
    return nothing.scatter(1, teacher.class_ids, teacher.logits)
