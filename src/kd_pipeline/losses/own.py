"""A user's own loss by import path: how it is called, and what is asked of it."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from kd_pipeline.errors import ParameterError
from kd_pipeline.import_path import MODULE, file_digest, import_named
from kd_pipeline.losses.record import SoftLoss, check_shapes

OFFERED = ("temperature", "labels", "label_mask", "num_classes")
"""What a function may take by name beside the logits: docs/how-to/write-a-loss.md."""


def own_loss(name: str, arguments: Mapping[str, Any]) -> SoftLoss:
    """The record of a user's own loss, read off the function's signature.

    Args:
        name: `module:<package.module>:<function>`.
        arguments: Further ones, from the settings.

    Raises:
        ParameterError: If there is no such function, or it takes other arguments.
    """
    function = _import_function(name)
    signature = inspect.signature(function)
    taken = [one for one in OFFERED if one in signature.parameters]
    try:
        signature.bind(None, None, **dict.fromkeys(taken), **arguments)
    except TypeError as error:
        rule = (
            "name a function of student_logits and teacher_logits that takes, by name, any of "
            f"{', '.join(OFFERED)} and its `arguments` ({error})"
        )
        raise ParameterError("soft_loss", rule, name) from error

    def loss(student_logits: Tensor, teacher_logits: Tensor, **given: Any) -> Tensor:
        check_shapes(student_logits, teacher_logits)
        given["num_classes"] = student_logits.shape[-1]
        chosen = {one: given[one] for one in taken}
        teacher = teacher_logits.detach().float()
        values: Tensor = function(student_logits.float(), teacher, **chosen, **arguments)
        if values.shape != student_logits.shape[:-1]:
            rule = "give one value per example, [batch]"
            raise ParameterError("soft_loss", rule, tuple(values.shape))
        return values

    return SoftLoss(
        loss,
        uses_temperature="temperature" in taken,
        needs_labels="labels" in taken or "label_mask" in taken,
        over_batch=True,  # It may be: rows without a soft target are kept from it.
    )


def own_loss_digest(name: str) -> str | None:
    """16 hex digits over the file of a user's own loss; None for one without a file."""
    return file_digest(_import_function(name))


def _import_function(name: str) -> Callable[..., Any]:
    try:
        function = import_named(name.removeprefix(MODULE), kind="function")
    except ParameterError as error:
        raise ParameterError("soft_loss", error.rule, name) from error
    if not inspect.isfunction(function):
        raise ParameterError("soft_loss", "name a function", name)
    return function
