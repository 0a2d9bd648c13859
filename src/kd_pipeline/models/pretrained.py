"""Torchvision's architectures by name and their weights, by enum name or local file."""

import difflib
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from kd_pipeline.errors import CheckpointError, ParameterError


def build_torchvision_model(
    name: str, *, shape: tuple[int, int, int], num_classes: int, **arguments: Any
) -> nn.Module:
    """Build a torchvision classification architecture with a head of `num_classes`.

    Args:
        name: As in `torchvision.models.list_models`.
        shape: Channels, height and width; torchvision's networks all take three channels.
        num_classes: Width of the head.
        arguments: Passed to the architecture's own builder; never `weights`.
    """
    import torchvision

    if "weights" in arguments:
        rule = "not be a model argument: name it under `pretrained.weights`"
        raise ParameterError("model.arguments.weights", rule, arguments["weights"])
    # Googlenet and inception would add auxiliary heads whose logits come as a named tuple.
    if name in ("googlenet", "inception_v3"):
        arguments = {"aux_logits": False, "init_weights": True, **arguments}
    if shape[0] != 3:
        rule = "be an architecture of this project for images of other than 1 or 3 channels"
        raise ParameterError("model.name", rule, name)
    network: nn.Module = torchvision.models.get_model(
        name, weights=None, num_classes=num_classes, **arguments
    )
    return network


def list_torchvision_models() -> list[str]:
    """Names of torchvision's classification architectures."""
    import torchvision

    return list(torchvision.models.list_models(module=torchvision.models))


@dataclass(frozen=True)
class PretrainedWeights:
    """A state dict to start from, with the head it was trained with."""

    state: Mapping[str, Tensor]
    class_names: tuple[str, ...] | None
    """Known where the weights declare their categories."""
    normalisation: tuple[tuple[float, ...], tuple[float, ...]] | None
    """Mean and standard deviation of each channel, where the weights declare them."""


def load_weights(
    architecture: str,
    *,
    weights: str | None = None,
    file: str | None = None,
    block: str = "teacher.pretrained",
) -> PretrainedWeights:
    """Load weights by their torchvision enum name or from a local file.

    Args:
        architecture: A torchvision name; its own weights enum is searched.
        weights: For instance `IMAGENET1K_V2` or `DEFAULT`; torchvision downloads and caches it.
        file: A `.safetensors` file, or a `.pth`/`.pt` state dict, which is read with
            torch's weights-only unpickler and so runs no code.
        block: Where in YAML these settings are.
    """
    if file is not None:
        return PretrainedWeights(read_state(Path(file), name=f"{block}.file"), None, None)
    declared = declared_weights(architecture, weights, block=block)
    try:
        state = declared.member.get_state_dict(progress=True, check_hash=True)
    except OSError as error:
        raise CheckpointError(
            f"`{block}.weights` {weights} of {architecture} could not be downloaded "
            f"({error}); download it elsewhere and name it under `{block}.file`"
        ) from error
    return PretrainedWeights(state, declared.class_names, (declared.mean, declared.std))


@dataclass(frozen=True)
class DeclaredWeights:
    """What torchvision says of weights, known without downloading them."""

    member: Any
    """Of the architecture's weights enum."""
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    input_size: int
    """Side of the square that they were evaluated on, in pixels."""


def declared_weights(architecture: str, weights: str | None, *, block: str) -> DeclaredWeights:
    """What a torchvision architecture's weights declare.

    Raises:
        ParameterError: If it has no such weights.
    """
    import torchvision

    if architecture not in list_torchvision_models():
        rule = f"be null for {architecture}, which torchvision has no weights for"
        raise ParameterError(f"{block}.weights", rule, weights)
    enum = torchvision.models.get_model_weights(architecture)
    names = [str(member.name) for member in enum]
    if weights not in (*names, "DEFAULT"):
        rule = f"be weights of {architecture}"
        raise ParameterError(f"{block}.weights", rule, weights, legal=names)
    member = enum[str(weights)]
    transforms = member.transforms()
    return DeclaredWeights(
        member,
        tuple(member.meta["categories"]),
        tuple(transforms.mean),
        tuple(transforms.std),
        int(transforms.crop_size[0]),
    )


def declared_normalisation(
    architecture: str,
) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and std that an architecture's default torchvision weights declare, if it has any.

    Local files of weights rarely say how their images were normalised; nearly all of them were
    trained under torchvision's own declaration.
    """
    if architecture not in list_torchvision_models():
        return None
    declared = declared_weights(architecture, "DEFAULT", block="teacher.pretrained")
    return declared.mean, declared.std


def read_state(path: Path, *, name: str) -> dict[str, Tensor]:
    """Read a state dict from a `.safetensors` or a `.pth`/`.pt` file, running no code of it.

    Args:
        path: The file; the dict may lie under `state_dict` or `model`.
        name: Of the setting that names it, for messages.

    Raises:
        ParameterError: If there is no such file.
        CheckpointError: If it is damaged, no state dict, or needs code to be read.
    """
    if not path.is_file():
        raise ParameterError(name, "be an existing file", str(path))
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read without running code: {error}") from error
    state = loaded.get("state_dict", loaded.get("model", loaded)) if isinstance(loaded, dict) else 0
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise CheckpointError(f"{path} must hold a state dict of tensors")
    return dict(state)


def adopt_weights(
    network: nn.Module, state: Mapping[str, Tensor], *, same_classes: bool
) -> list[str]:
    """Copy pretrained weights into a network; only the head may differ, and that is reported.

    Args:
        network: Freshly built with the right number of classes.
        state: The pretrained state dict.
        same_classes: Whether the pretrained head has the very same classes in the same order;
            otherwise the head starts afresh.

    Returns:
        The names of the parameters that start afresh.

    Raises:
        CheckpointError: If anything but the head does not fit.
    """
    own, given = dict(network.state_dict()), dict(state)
    head = head_parameters(network)
    fresh = [name for name in head if not same_classes or own[name].shape != given[name].shape]
    body = {name: value for name, value in given.items() if name not in fresh}
    missing = [name for name in own if name not in body and name not in fresh]
    unknown = [name for name in body if name not in own]
    misfits = [n for n in body if n in own and own[n].shape != body[n].shape]
    if missing or unknown or misfits:
        raise CheckpointError(
            f"the pretrained weights do not fit the architecture: {len(missing)} missing "
            f"{missing[:3]}, {len(unknown)} unknown {unknown[:3]}, "
            f"{len(misfits)} of another shape {misfits[:3]}"
        )
    network.load_state_dict({**own, **body})
    return fresh


def head_parameters(network: nn.Module) -> list[str]:
    """Names of the parameters of the last layer that has weights: the classification head."""
    return layers_with_weights(network)[-1]


def layers_with_weights(network: nn.Module) -> list[list[str]]:
    """Parameter names of each module that holds weights itself, in the order of definition."""
    layers = []
    for prefix, module in network.named_modules():
        names = [name for name, _ in module.named_parameters(recurse=False)]
        if names:
            layers.append([f"{prefix}.{name}" if prefix else name for name in names])
    return layers


def freeze_all_but_last(network: nn.Module, num_layers: int) -> None:
    """Let only the last `num_layers` modules that have weights train."""
    layers = layers_with_weights(network)
    if num_layers > len(layers):
        raise ParameterError(
            "teacher.pretrained.trainable_layers",
            f"be at most the {len(layers)} layers that have weights",
            num_layers,
        )
    trainable = {name for layer in layers[-num_layers:] for name in layer}
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name in trainable)


def suggest(name: str, known: list[str]) -> list[str]:
    """The known names nearest to a misspelt one."""
    return difflib.get_close_matches(name, known, n=5, cutoff=0.4)
