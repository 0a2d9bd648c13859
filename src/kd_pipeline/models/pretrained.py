"""Torchvision's architectures by name and their weights, by enum name or local file."""

import difflib
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kd_pipeline.errors import CheckpointError, ParameterError


def build_torchvision_model(
    name: str, *, shape: tuple[int, int, int], num_classes: int, **arguments: Any
) -> nn.Module:
    """Build a torchvision classification architecture with a head of `num_classes`.

    Args:
        name: As in `torchvision.models.list_models`.
        shape: Channels, height and width; grey images are repeated to three channels.
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
    network: nn.Module = torchvision.models.get_model(
        name, weights=None, num_classes=num_classes, **arguments
    )
    return nn.Sequential(_ToThreeChannels(), network) if shape[0] == 1 else network


class _ToThreeChannels(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.expand(-1, 3, -1, -1)


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
) -> PretrainedWeights:
    """Load weights by their torchvision enum name or from a local file.

    Args:
        architecture: A torchvision name; its own weights enum is searched.
        weights: For instance `IMAGENET1K_V2` or `DEFAULT`; torchvision downloads and caches it.
        file: A `.safetensors` file, or a `.pth`/`.pt` state dict, which is read with
            torch's weights-only unpickler and so runs no code.
    """
    if file is not None:
        return PretrainedWeights(_read_state(Path(file)), None, None)
    import torchvision

    if architecture not in list_torchvision_models():
        rule = f"be null for {architecture}, which torchvision has no weights for"
        raise ParameterError("teacher.pretrained.weights", rule, weights)
    enum = torchvision.models.get_model_weights(architecture)
    names = [str(member.name) for member in enum]
    if weights not in (*names, "DEFAULT"):
        raise ParameterError(
            "teacher.pretrained.weights", f"be weights of {architecture}", weights, legal=names
        )
    member = enum[str(weights)]
    transforms = member.transforms()
    normalisation = tuple(transforms.mean), tuple(transforms.std)
    try:
        state = member.get_state_dict(progress=True, check_hash=True)
    except OSError as error:
        raise CheckpointError(
            f"`teacher.pretrained.weights` {weights} of {architecture} could not be downloaded "
            f"({error}); download it elsewhere and name it under `teacher.pretrained.file`"
        ) from error
    return PretrainedWeights(state, tuple(member.meta["categories"]), normalisation)


def declared_normalisation(
    architecture: str,
) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and std that an architecture's default torchvision weights declare, if it has any.

    Local files of weights rarely say how their images were normalised; nearly all of them were
    trained under torchvision's own declaration.
    """
    import torchvision

    if architecture not in list_torchvision_models():
        return None
    transforms = torchvision.models.get_model_weights(architecture).DEFAULT.transforms()
    return tuple(transforms.mean), tuple(transforms.std)


def _read_state(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ParameterError("teacher.pretrained.file", "be an existing file", str(path))
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return dict(load_file(path))
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError) as error:
        raise CheckpointError(f"{path} cannot be read without running code: {error}") from error
    state = loaded.get("state_dict", loaded.get("model", loaded))
    if not all(isinstance(value, Tensor) for value in state.values()):
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
    own = dict(network.state_dict())
    prefix = (
        "1." if isinstance(network, nn.Sequential) and all(k.startswith("1.") for k in own) else ""
    )
    given = {prefix + name: value for name, value in state.items()}
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
