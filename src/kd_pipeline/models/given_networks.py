"""Networks of torchvision, of timm and of the user's own, with weights by name or from a file."""

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from kd_pipeline.errors import CheckpointError, ParameterError
from kd_pipeline.models.architectures import (
    MODULE,
    TIMM,
    build_network,
    create_timm_model,
    import_network,
    import_timm,
)
from kd_pipeline.models.pretrained import (
    declared_weights,
    list_torchvision_models,
    load_weights,
    read_state,
    suggest,
)

# Their extra heads serve training alone; they normalise anew what is normalised as declared.
_WITH_AUXILIARY_HEADS = {"googlenet": ("aux1.", "aux2."), "inception_v3": ("AuxLogits.",)}


@dataclass(frozen=True)
class Found:
    """A library's model before its weights are fetched."""

    architecture: str
    class_names: Sequence[Sequence[str]]
    """What its outputs are called, in each of the ways that the library knows; may be empty."""
    declared: Mapping[str, Any]
    """`mean`, `std` and `input_size`, as the weights declare them."""
    load: Callable[[], tuple[nn.Module, Mapping[str, Any]]]
    """Makes the trained network, and the arguments that rebuild it."""


def read_torchvision(entry: Mapping[str, Any], *, num_classes: int, name: str) -> Found:
    """Look up a model of torchvision's.

    Args:
        entry: Of kind `torchvision`.
        num_classes: Width of the head that a file must have.
        name: Of the entry in YAML.
    """
    architecture, weights, file = entry["name"], entry["weights"], entry["file"]
    if architecture not in (known := list_torchvision_models()):
        legal = suggest(architecture, known) or None
        raise ParameterError(f"{name}.name", "be torchvision's", architecture, legal=legal)
    usual = declared_weights(architecture, weights or "DEFAULT", block=name)
    declared = {"mean": usual.mean, "std": usual.std, "input_size": usual.input_size}
    as_declared = entry["preprocessing"] in (None, "declared")
    heads = _WITH_AUXILIARY_HEADS.get(architecture, ())
    own = {"transform_input": as_declared} if heads else {}
    arguments = {**own, **entry["arguments"]}

    def load() -> tuple[nn.Module, Mapping[str, Any]]:
        state = load_weights(architecture, weights=weights, file=file, block=name).state
        kept = {key: value for key, value in state.items() if not key.startswith(tuple(heads))}
        # The file may have been saved of any size: that it has the head's is checked by loading.
        network = build_network(
            architecture, shape=(3, 0, 0), num_classes=num_classes, arguments=arguments
        )
        return load_strictly(network, kept, name=name), arguments

    return Found(architecture, [] if file else [usual.class_names], declared, load)


def read_timm(entry: Mapping[str, Any], *, num_classes: int, name: str) -> Found:
    """Look up a model of timm's; arguments as in `read_torchvision`."""
    weights, file, arguments = entry["weights"], entry["file"], entry["arguments"]
    timm = import_timm()
    base = entry["name"]
    if "num_classes" in arguments:
        # With pretrained weights timm would start a head of that size afresh, in silence.
        rule = "be left out: the head must be the weights' own"
        raise ParameterError(f"{name}.arguments.num_classes", rule, arguments["num_classes"])
    tagged = f"{base}.{weights}" if isinstance(weights, str) else base
    if not timm.is_model(base):
        legal = suggest(base.partition(".")[0], timm.list_models()) or None
        raise ParameterError(f"{name}.name", "be a model of timm's", base, legal=legal)
    tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{base}.*")]
    if isinstance(weights, str) and weights not in tags:
        raise ParameterError(f"{name}.weights", f"be weights of {base}", weights, legal=tags)
    overlay = arguments.get("pretrained_cfg_overlay", {})
    config = {**timm.get_pretrained_cfg(tagged).to_dict(), **overlay}
    declared = {
        "mean": config["mean"],
        "std": config["std"],
        "input_size": config["input_size"][-1],
    }

    def load() -> tuple[nn.Module, Mapping[str, Any]]:
        if file is None:
            network = create_timm_model(tagged, arguments=arguments, pretrained=True)
        else:
            state = read_state(Path(file), name=f"{name}.file")
            own = {"num_classes": num_classes, **arguments}
            network = load_strictly(create_timm_model(base, arguments=own), state, name=name)
        return network, {k: v for k, v in arguments.items() if k != "pretrained_cfg_overlay"}

    return Found(f"{TIMM}{base}", [] if file else _timm_names(config), declared, load)


def _timm_names(config: Mapping[str, Any]) -> list[Sequence[str]]:
    """Names of the outputs: told by the weights, else WordNet's ids or words of ImageNet."""
    if config.get("label_names"):
        return [list(config["label_names"])]
    data: Any = importlib.import_module("timm.data")
    subset = data.infer_imagenet_subset(dict(config))
    if subset is None:
        return []
    info = data.ImageNetInfo(subset)
    return [info.label_names(), info.label_descriptions()]


def read_module(entry: Mapping[str, Any], *, name: str) -> tuple[str, nn.Module]:
    """Make a user's own network and load its state dict.

    Args:
        entry: Of kind `module`.
        name: Of the entry in YAML.

    Returns:
        What its architecture is called, and the network.
    """
    network = import_network(entry["import_path"], arguments=entry["arguments"])
    state = read_state(Path(entry["file"]), name=f"{name}.file")
    return f"{MODULE}{entry['import_path']}", load_strictly(network, state, name=name)


def load_strictly(network: nn.Module, state: Mapping[str, Tensor], *, name: str) -> nn.Module:
    """Load a state dict whole: nothing may be missing, left over or of another shape.

    Raises:
        CheckpointError: Naming the differences.
    """
    try:
        network.load_state_dict(dict(state), strict=True)
    except RuntimeError as error:
        raise CheckpointError(f"the weights of `{name}` do not fit its network: {error}") from error
    return network
