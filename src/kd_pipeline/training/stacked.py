"""Replicates of a small network as one network, which takes one step where each took its own.

A step of a small network is mostly the overhead of its operators. Networks of one architecture
become one of the same layers, whose weights are theirs, one after another along the first
dimension: convolutions are grouped, linear layers are batched matrix products, and batch norm and
pooling work on each channel by itself anyway. No weight meets another replicate's images, so that
the gradient of the summed losses is, for each replicate, its own.
"""

import copy
from collections.abc import Iterator, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from kd_pipeline.models.checkpoint import count_macs
from kd_pipeline.models.classifier import Classifier
from kd_pipeline.training.settings import Training

MAX_MACS_PER_STEP = 30_000_000
"""Multiply-accumulates of one replicate's forward pass on a batch, up to which stacking pays."""

ELEMENTWISE_OPTIMISERS = frozenset((
    "ASGD", "Adadelta", "Adagrad", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop", "Rprop",
    "SGD",
))  # fmt: skip
"""Those of torch that update each weight by itself; Muon and Adafactor mix a matrix's weights."""

_BEFORE_FLATTEN = (
    nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.GELU, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d,
)  # fmt: skip
_AFTER_FLATTEN = (nn.Linear, nn.ReLU, nn.GELU)


def why_alone(classifier: Classifier, training: Training) -> str | None:
    """Why replicates of a classifier must train one by one; None where they can be stacked.

    A rule of settings and sizes, never of timing: a stack rounds otherwise than a network alone.
    """
    reason = _of_settings(training) or _of_network(classifier.network)
    if reason is not None:
        return reason
    macs = count_macs(classifier) * training.batch_size
    if macs > MAX_MACS_PER_STEP:
        return f"{macs:,} multiply-accumulates a step are too many to gain from a stack"
    return None


def _of_settings(training: Training) -> str | None:
    for name in ("early_stopping", "max_gradient_norm", "max_weight_norm"):
        if getattr(training, name) is not None:
            return f"`training.{name}` is set"
    if training.schedule.name == "ReduceLROnPlateau":
        return "ReduceLROnPlateau follows the validation of one"
    if training.optimiser.name not in ELEMENTWISE_OPTIMISERS:
        return f"{training.optimiser.name} does not update each weight by itself"
    return None


def _of_network(network: nn.Module) -> str | None:
    if not all(parameter.requires_grad for parameter in network.parameters()):
        return "some layers are frozen"
    if len(network.state_dict()) > len([*network.parameters(), *network.buffers()]):
        return "some weights are tied"
    kinds = [type(layer) for _, layer in _layers(network)]
    if kinds.count(nn.Flatten) != 1:
        return f"{type(network).__name__} is no sequence of layers with one Flatten"
    at = kinds.index(nn.Flatten)
    legal = [_BEFORE_FLATTEN] * at + [(nn.Flatten,)] + [_AFTER_FLATTEN] * (len(kinds) - at - 1)
    others = (kind.__name__ for kind, known in zip(kinds, legal, strict=True) if kind not in known)
    other = next(others, None)
    return None if other is None else f"a stack has no {other}, or not at this place"


def _layers(network: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Layers with their names, in the order in which they run; only `Sequential` is a container."""
    if type(network) is not nn.Sequential:
        yield prefix, network
        return
    for name, layer in network.named_children():
        yield from _layers(layer, f"{prefix}.{name}" if prefix else name)


def stack(classifiers: Sequence[Classifier]) -> Classifier:
    """One classifier that holds copies of several of one architecture, for training them.

    It maps pixels [replicates x batch, ...], those of each replicate together, to logits in the
    same order.
    """
    network = StackedNetwork([classifier.network for classifier in classifiers])
    return Classifier(network, classifiers[0].preprocessing, takes_any_layout=False)


def unstack(stacked: Classifier, classifiers: Sequence[Classifier]) -> None:
    """Copy the weights and statistics of a stack into the classifiers that it was made of."""
    state = cast(StackedNetwork, stacked.network).network.state_dict()
    for at, classifier in enumerate(classifiers):
        own = {k: v.chunk(len(classifiers))[at] if v.dim() else v for k, v in state.items()}
        classifier.network.load_state_dict(own)


class StackedNetwork(nn.Module):
    """Maps images [replicates x batch, ...] to logits [replicates x batch, num_classes]."""

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        """Copy networks that have one architecture and pass `why_alone`."""
        super().__init__()
        self.num_replicates = len(networks)
        self.network = copy.deepcopy(networks[0])
        layers = tuple(_layers(self.network))
        self.begins_flat = isinstance(layers[0][1], nn.Flatten)
        for name, layer in layers:
            _replace(self.network, name, _stacked(layer, self.num_replicates))
        states = [network.state_dict() for network in networks]
        for name, value in states[0].items():
            if value.dim():  # Batch norm counts the batches of all together.
                _replace(self.network, name, torch.cat([state[name] for state in states]))

    def forward(self, images: Tensor) -> Tensor:
        """Channels of all replicates side by side up to `Flatten`, a matrix for each after it."""
        features = torch.unflatten(images, 0, (self.num_replicates, -1))
        if not self.begins_flat:
            features = features.transpose(0, 1).flatten(1, 2)
        logits: Tensor = self.network(features)
        return logits.flatten(0, 1)


class StackedFlatten(nn.Module):
    """Flattens [batch, replicates x channels, h, w] to [replicates, batch, channels x h x w]."""

    def __init__(self, num_replicates: int) -> None:
        """Without weights."""
        super().__init__()
        self.num_replicates = num_replicates

    def forward(self, features: Tensor) -> Tensor:
        """Images [replicates, batch, channels, h, w] that no layer has seen are flattened too."""
        if features.dim() == 4:
            features = torch.unflatten(features, 1, (self.num_replicates, -1)).transpose(0, 1)
        return features.flatten(2)


class StackedLinear(nn.Module):
    """Maps [replicates, batch, in_features] to [replicates, batch, out_features]."""

    def __init__(self, linear: nn.Linear, num_replicates: int) -> None:
        """Take the place of a layer; its weights are replaced by those of all."""
        super().__init__()
        self.num_replicates = num_replicates
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, features: Tensor) -> Tensor:
        """Multiply each replicate's features with its own matrix."""
        matrices = torch.unflatten(self.weight, 0, (self.num_replicates, -1)).mT
        if self.bias is None:
            return torch.bmm(features, matrices)
        bias = torch.unflatten(self.bias, 0, (self.num_replicates, 1, -1))
        return torch.baddbmm(bias, features, matrices)


def _stacked(layer: nn.Module, num_replicates: int) -> nn.Module:
    """The layer of a stack in the place of a copied one, before it gets the weights of all."""
    match layer:
        case nn.Flatten():
            return StackedFlatten(num_replicates)
        case nn.Linear():
            return StackedLinear(layer, num_replicates)
        case nn.Conv2d():
            layer.in_channels *= num_replicates
            layer.out_channels *= num_replicates
            layer.groups *= num_replicates
        case nn.BatchNorm2d():
            layer.num_features *= num_replicates
    return layer


def _replace(network: nn.Module, name: str, new: nn.Module | Tensor) -> None:
    parent, _, own = name.rpartition(".")
    owner = network.get_submodule(parent)
    is_weight = isinstance(getattr(owner, own), nn.Parameter)
    setattr(owner, own, nn.Parameter(cast(Tensor, new)) if is_weight else new)
