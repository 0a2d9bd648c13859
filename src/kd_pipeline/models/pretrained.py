"""Pretrained weights: read without running code, and loaded whole or without the head."""

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from kd_pipeline.errors import CheckpointError, ParameterError
from kd_pipeline.models.libraries import (
    cannot_download,
    list_torchvision_models,
    torchvision_weights,
)
from kd_pipeline.models.settings import GivenTorchvision, Pretrained


@dataclass(frozen=True)
class PretrainedWeights:
    """A state dict to start from, with the head's weights."""

    state: Mapping[str, Tensor]
    class_names: tuple[str, ...] | None
    """None where they are not declared."""
    normalisation: tuple[tuple[float, ...], tuple[float, ...]] | None
    """Mean and standard deviation per channel; None where they are not declared."""


def load_weights(architecture: str, pretrained: Pretrained) -> PretrainedWeights:
    """Load the weights that a block's `pretrained` names.

    Files do not declare their normalisation: for torchvision's architectures it is assumed to be
    that of the default weights.
    """
    try:
        state = read_named(architecture, pretrained)
        if pretrained.file is not None and architecture not in list_torchvision_models():
            return PretrainedWeights(state, None, None)
        _, class_names, usual = torchvision_weights(architecture, pretrained.weights)
    except ParameterError as error:
        raise error.within("pretrained") from error
    named = class_names if pretrained.file is None else None
    return PretrainedWeights(state, named, (usual.mean, usual.std))


def read_named(architecture: str, named: Pretrained | GivenTorchvision) -> dict[str, Tensor]:
    """Read a local file, or torchvision's weights by name, which may be downloaded."""
    if named.file is not None:
        return read_state(Path(named.file))
    member, _, _ = torchvision_weights(architecture, named.weights)
    try:
        return dict(member.get_state_dict(progress=True, check_hash=True))
    except OSError as error:
        raise cannot_download(f"{named.weights} of {architecture}", error) from error


def read_state(path: Path) -> dict[str, Tensor]:
    """Read a state dict from a `.safetensors` or a `.pth` file, without running code of it.

    In the latter it may lie under the key `state_dict` or `model`.

    Raises:
        ParameterError: If there is no such file.
        CheckpointError: If it is damaged, no state dict, or needs code to be read.
    """
    if not path.is_file():
        raise ParameterError("file", "be an existing file", str(path))
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # Damaged files lead torch's unpickler to errors of any kind.
        # The message of torch's UnpicklingError advises to let the file run code.
        reason = type(error).__name__
        if not isinstance(error, pickle.UnpicklingError):
            reason += f": {error}".partition("\n")[0]
        raise CheckpointError(
            f"{path} is damaged, or cannot be read without running code: {reason}"
        ) from error
    state = loaded
    if isinstance(loaded, dict):
        state = loaded.get("state_dict", loaded.get("model", loaded))
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise CheckpointError(f"{path} must hold a state dict of tensors")
    return dict(state)


def adopt_weights(
    network: nn.Module, state: Mapping[str, Tensor], *, same_classes: bool
) -> list[str]:
    """Load pretrained weights into a network, except for a head of other classes.

    Args:
        network: Freshly built with the right number of classes.
        state: The pretrained state dict.
        same_classes: Whether the pretrained head has the same classes in the same order.

    Returns:
        The names of the parameters that keep their initial values.

    Raises:
        CheckpointError: If anything but the head does not fit.
    """
    # The head is the last layer that has weights.
    own, head = network.state_dict(), layers_with_weights(network)[-1]
    fresh = [n for n in head if not same_classes or (n in state and own[n].shape != state[n].shape)]
    body = {name: value for name, value in state.items() if name not in fresh}
    load_strictly(network, body | {name: own[name] for name in fresh}, "`model`")
    return fresh


def load_strictly(network: nn.Module, state: Mapping[str, Tensor], what: str) -> None:
    """Load a state dict whole.

    Raises:
        CheckpointError: If anything is missing, left over or of another shape.
    """
    try:
        network.load_state_dict(dict(state), strict=True)
    except RuntimeError as error:
        raise CheckpointError(f"the weights do not fit {what}: {error}") from error


def layers_with_weights(network: nn.Module) -> list[list[str]]:
    """Parameter names of each module that has weights of its own, in the order of definition."""
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
        rule = f"be at most the {len(layers)} layers that have weights"
        raise ParameterError("pretrained.trainable_layers", rule, num_layers)
    trainable = {name for layer in layers[-num_layers:] for name in layer}
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name in trainable)
