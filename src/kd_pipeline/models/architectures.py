"""Networks by name: this project's, torchvision's, timm's as `timm:<name>`, and users' own classes.

The latter are named by import path: `module:<package.module>:<Class>`.
"""

import copy
import hashlib
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from kd_pipeline.errors import ParameterError
from kd_pipeline.import_path import MODULE, file_digest, import_named
from kd_pipeline.models.convolutional import CifarResNet, FastCnn, build_small_cnn
from kd_pipeline.models.libraries import (
    build_torchvision_model,
    create_timm_model,
    list_torchvision_models,
    suggest,
)
from kd_pipeline.models.mlp import build_mlp
from kd_pipeline.randomness import seeded

ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {
    "mlp": build_mlp,
    "small_cnn": build_small_cnn,
    "cifar_resnet": CifarResNet,
    "fast_cnn": FastCnn,
}

TIMM = "timm:"

_FAILURES = (ImportError, AttributeError, ValueError, TypeError)


def num_channels(name: str, channels: int) -> int:
    """Number of input channels of a network, for images of `channels` channels.

    Torchvision's and timm's networks take three: grey images are repeated for them.
    """
    is_library = name not in ARCHITECTURES and not name.startswith(MODULE)
    return 3 if is_library and channels == 1 else channels


def build_network(
    name: str, *, shape: tuple[int, int, int], num_classes: int, arguments: Mapping[str, Any]
) -> nn.Module:
    """Build an untrained network by name.

    Args:
        name: A key of `ARCHITECTURES`, a torchvision classification model, or a prefixed name.
        shape: Channels, height and width of its input.
        num_classes: Width of its head.
        arguments: The architecture's own.

    Raises:
        ParameterError: If the name or an argument is unknown; its name lacks the block's.
    """
    if name.startswith(TIMM):
        bare = name.removeprefix(TIMM)
        return create_timm_model(bare, num_classes=num_classes, arguments=arguments)
    if name.startswith(MODULE):
        return import_network(name.removeprefix(MODULE), arguments=arguments)
    builder = _builder(name, arguments)
    try:
        return builder(shape=shape, num_classes=num_classes, **arguments)
    except ParameterError:
        raise
    except (TypeError, RuntimeError, ValueError) as error:
        rule = f"suit the architecture ({error})"
        raise ParameterError("arguments", rule, dict(arguments)) from error


def _builder(name: str, arguments: Mapping[str, Any]) -> Callable[..., nn.Module]:
    if name not in ARCHITECTURES:
        if name not in (known := list_torchvision_models()):
            legal = suggest(name, [*ARCHITECTURES, *known]) or list(ARCHITECTURES)
            rule = "be one of this project's architectures or of torchvision's"
            raise ParameterError("name", rule, name, legal=legal)
        return partial(build_torchvision_model, name)
    builder = ARCHITECTURES[name]
    legal_arguments = set(inspect.signature(builder).parameters) - {"shape", "num_classes"}
    if unknown := [argument for argument in arguments if argument not in legal_arguments]:
        rule = f"be an argument of {name}"
        raise ParameterError("arguments", rule, unknown[0], legal=legal_arguments)
    return builder


def import_network(import_path: str, *, arguments: Mapping[str, Any]) -> nn.Module:
    """Build a network of a user's own class.

    Raises:
        ParameterError: If there is no such class, it is no `nn.Module`, or it refuses `arguments`.
    """
    network = _import_class(import_path)
    try:
        return network(**arguments)
    except _FAILURES as error:
        rule = f"name a class that takes `arguments` ({error})"
        raise ParameterError("import_path", rule, import_path) from error


def _import_class(import_path: str) -> type[nn.Module]:
    """Import a class, and never a function: a checkpoint's file could name any there is.

    Importing runs the module, whichever it is: only the class is checked.
    """
    found = import_named(import_path, kind="Class")
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        rule = (
            "name a class that is a torch.nn.Module, as no function that a checkpoint names is "
            "called; subclass what the function builds"
        )
        raise ParameterError("import_path", rule, import_path)
    return found


def code_digest(architecture: str) -> str | None:
    """16 hex digits over the file in which a user's own class is written.

    A teacher with the same weights and another `forward` so gets another fingerprint. Changes
    in files that this one imports show in `logits_digest`.

    Returns:
        None for all other architectures, and for classes without a file.

    Raises:
        ParameterError: If there is no such class.
    """
    if not architecture.startswith(MODULE):
        return None
    return file_digest(_import_class(architecture.removeprefix(MODULE)))


def logits_digest(network: nn.Module, shape: tuple[int, int, int]) -> str:
    """16 hex digits over a network's logits of two fixed inputs, whatever code computes them.

    They are computed in float64 and rounded to float16, as in a cache: another processor or number
    of threads then gives the same digits. A network that cannot compute in float64 is run as it is.

    Args:
        network: On the CPU; left as it is.
        shape: Channels, height and width of its input.
    """
    inputs = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    copied = copy.deepcopy(network).eval()
    with torch.inference_mode(), seeded(0):
        try:
            logits = copy.deepcopy(copied).double()(inputs.double())
        except (RuntimeError, TypeError):
            logits = copied(inputs)
    return hashlib.sha256(logits.half().numpy().tobytes()).hexdigest()[:16]
