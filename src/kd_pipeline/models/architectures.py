"""One dict from an architecture's name to its builder; every other name is torchvision's.

Two prefixes lead elsewhere: `timm:<name>`, and `module:<package.module>:<Class>` for a user's own
network, which is named by import path.
"""

import hashlib
import importlib
import importlib.util
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from kd_pipeline.errors import CheckpointError, ParameterError
from kd_pipeline.models.convolutional import build_cifar_resnet, build_small_cnn
from kd_pipeline.models.mlp import build_mlp
from kd_pipeline.models.pretrained import build_torchvision_model, list_torchvision_models, suggest

ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {
    "mlp": build_mlp,
    "small_cnn": build_small_cnn,
    "cifar_resnet": build_cifar_resnet,
}

TIMM, MODULE = "timm:", "module:"


def num_channels(name: str, channels: int) -> int:
    """How many channels a network by this name takes for images of so many.

    Torchvision's and timm's take three, so that grey images are repeated for them.
    """
    foreign = name not in ARCHITECTURES and not name.startswith(MODULE)
    return 3 if foreign and channels == 1 else channels


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
    if name.startswith(TIMM):
        arguments = {"num_classes": num_classes, **arguments}
        return create_timm_model(name.removeprefix(TIMM), arguments=arguments)
    if name.startswith(MODULE):
        return import_network(name.removeprefix(MODULE), arguments=arguments)
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


def import_network(import_path: str, *, arguments: Mapping[str, Any]) -> nn.Module:
    """Make a network of a user's own class.

    Only a class that is an `nn.Module` is called, and never a function: the import path may come
    from a checkpoint's file, which could name any function there is. The same holds for a path in
    YAML, as later stages have the teacher's checkpoint and nothing else.

    Args:
        import_path: `package.module:Class`, of something that is installed or on the path.
        arguments: Handed to the class by name.

    Raises:
        ParameterError: If there is no such class, it fails, or it is no `nn.Module`.
    """
    module, _, name = import_path.partition(":")
    if any(part.startswith("__") for part in module.split(".")):
        # Importing `__main__` of a package runs the program that it is.
        raise ParameterError("import_path", "name a module without leading __", import_path)
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        rule = f"name a class as `package.module:Class` ({error})"
        raise ParameterError("import_path", rule, import_path) from error
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        rule = (
            "name a class that is a torch.nn.Module, as no function that a checkpoint names is "
            "called; subclass what the function builds"
        )
        raise ParameterError("import_path", rule, import_path)
    try:
        network = found(**arguments)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        rule = f"name a class that takes `arguments` ({error})"
        raise ParameterError("import_path", rule, import_path) from error
    return network


def code_digest(architecture: str) -> str | None:
    """16 hex digits over the file that a user's own class is written in.

    Weights do not tell what `forward` does with them: without this a teacher whose code was
    mended would be served the logits of the old one. Files that this one imports are not in it.

    Args:
        architecture: Of a checkpoint.

    Returns:
        None for what is not a user's own class, and for classes without a source file.
    """
    if not architecture.startswith(MODULE):
        return None
    module = architecture.removeprefix(MODULE).partition(":")[0]
    found = importlib.util.find_spec(module)
    if found is None or found.origin is None or not Path(found.origin).is_file():
        return None
    return hashlib.sha256(Path(found.origin).read_bytes()).hexdigest()[:16]


def create_timm_model(
    name: str, *, arguments: Mapping[str, Any], pretrained: bool = False
) -> nn.Module:
    """Build a network of timm's, which is an optional extra.

    Args:
        name: As in `timm.list_models`, with or without a weights tag.
        arguments: Of `timm.create_model`.
        pretrained: Whether timm loads the weights of the name, which may download them.

    Raises:
        ParameterError: If timm is not installed, or does not know the name or the arguments.
        CheckpointError: If the weights cannot be had.
    """
    timm = import_timm()
    # Else a checkpoint could name a hub, a folder or a file to load from.
    if not timm.is_model(name):
        known = suggest(name.partition(".")[0], timm.list_models()) or None
        raise ParameterError("name", "be a model of timm's", name, legal=known)
    if refused := sorted({"checkpoint_path", "pretrained_cfg", "cache_dir"} & set(arguments)):
        rule = "name no files: those go under `file`"
        raise ParameterError("arguments", rule, ", ".join(refused))
    try:
        network: nn.Module = timm.create_model(name, pretrained=pretrained, **arguments)
    except OSError as error:
        raise CheckpointError(
            f"the weights of timm's {name} could not be downloaded ({error}); download them "
            "elsewhere and name the file under `file`"
        ) from error
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        known = suggest(name.partition(".")[0], timm.list_models())
        rule = f"be a model of timm's that takes `arguments` ({error})"
        raise ParameterError("name", rule, name, legal=known or None) from error
    return network


def import_timm() -> Any:
    """Import timm, or say how to install it."""
    try:
        import timm
    except ImportError as error:
        rule = "have timm installed: pip install 'kd_pipeline[timm]'"
        raise ParameterError("kind", rule, "timm") from error
    return timm
