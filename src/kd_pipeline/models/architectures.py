"""One dict from an architecture's name to its builder; every other name is torchvision's."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from kd_pipeline.errors import ParameterError
from kd_pipeline.models.convolutional import build_cifar_resnet, build_small_cnn
from kd_pipeline.models.mlp import build_mlp
from kd_pipeline.models.pretrained import build_torchvision_model, list_torchvision_models, suggest

ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {
    "mlp": build_mlp,
    "small_cnn": build_small_cnn,
    "cifar_resnet": build_cifar_resnet,
}


def build_network(
    name: str, *, shape: tuple[int, int, int], num_classes: int, arguments: Mapping[str, Any]
) -> nn.Module:
    """Build an untrained network by name.

    Args:
        name: A key of `ARCHITECTURES` or a torchvision classification model.
        shape: Channels, height and width of its input.
        num_classes: Width of its head.
        arguments: The architecture's own arguments.

    Raises:
        ParameterError: If the name or an argument is unknown.
    """
    if name not in ARCHITECTURES:
        known = list_torchvision_models()
        if name not in known:
            legal = suggest(name, [*ARCHITECTURES, *known]) or list(ARCHITECTURES)
            rule = "be one of this project's architectures or of torchvision's"
            raise ParameterError("model.name", rule, name, legal=legal)
        return _call(build_torchvision_model, name, shape, num_classes, arguments)
    builder = ARCHITECTURES[name]
    legal_arguments = set(inspect.signature(builder).parameters) - {"shape", "num_classes"}
    for argument in arguments:
        if argument not in legal_arguments:
            rule = f"be an argument of {name}"
            raise ParameterError("model.arguments", rule, argument, legal=legal_arguments)
    return _call(builder, None, shape, num_classes, arguments)


def _call(
    builder: Callable[..., nn.Module],
    name: str | None,
    shape: tuple[int, int, int],
    num_classes: int,
    arguments: Mapping[str, Any],
) -> nn.Module:
    positional = () if name is None else (name,)
    try:
        return builder(*positional, shape=shape, num_classes=num_classes, **arguments)
    except (TypeError, RuntimeError) as error:
        rule = f"suit the architecture ({error})"
        raise ParameterError("model.arguments", rule, dict(arguments)) from error
