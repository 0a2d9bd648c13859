"""Given networks of torchvision, of timm or of the user, with weights by name or from a file."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from kd_pipeline.errors import ParameterError
from kd_pipeline.import_path import MODULE
from kd_pipeline.models.architectures import TIMM
from kd_pipeline.models.libraries import (
    AUXILIARY_HEADS,
    create_timm_model,
    find_timm,
    list_torchvision_models,
    suggest,
    timm_class_names,
    torchvision_weights,
)
from kd_pipeline.models.pretrained import read_named, read_state
from kd_pipeline.models.settings import (
    GivenModule,
    GivenPreprocessing,
    GivenTimm,
    GivenTorchvision,
)


@dataclass(frozen=True)
class Found:
    """A network whose weights are not read yet: they may have to be downloaded."""

    architecture: str
    arguments: Mapping[str, Any]
    """From which `build_network` rebuilds it."""
    class_names: Sequence[Sequence[str]]
    """Names of its outputs, once for each way in which the library names them; may be empty."""
    preprocessing: GivenPreprocessing
    read_state: Callable[[], Mapping[str, Tensor]]


def find_network(given: GivenTorchvision | GivenTimm | GivenModule) -> Found:
    """Look up a network and what is declared of it.

    Raises:
        ParameterError: If a name or an argument is unknown.
    """
    if isinstance(given, GivenTorchvision):
        return _find_torchvision(given)
    return _find_timm(given) if isinstance(given, GivenTimm) else _find_module(given)


def _find_torchvision(given: GivenTorchvision) -> Found:
    if given.name not in (known := list_torchvision_models()):
        legal = suggest(given.name, known)
        raise ParameterError("name", "be torchvision's", given.name, legal=legal)
    _, class_names, declared = torchvision_weights(given.name, given.weights)
    own = given.preprocessing if isinstance(given.preprocessing, GivenPreprocessing) else None
    heads = AUXILIARY_HEADS.get(given.name, ())
    # These architectures turn the declared normalisation into their own, inside the network.
    arguments = {**({"transform_input": own is None} if heads else {}), **given.arguments}

    def read() -> Mapping[str, Tensor]:
        state = read_named(given.name, given)
        return {key: value for key, value in state.items() if not key.startswith(heads)}

    names = [] if given.file else [class_names]
    return Found(given.name, arguments, names, own or declared, read)


def _find_timm(given: GivenTimm) -> Found:
    arguments = given.arguments
    timm = find_timm(given.name, arguments)
    tagged = f"{given.name}.{given.weights}" if isinstance(given.weights, str) else given.name
    try:
        config = timm.get_pretrained_cfg(tagged).to_dict()
    except RuntimeError as error:
        bare = given.name.partition(".")[0]
        tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{bare}.*")]
        tag = tagged.removeprefix(f"{bare}.")
        raise ParameterError("weights", f"be weights of {bare}", tag, legal=tags) from error
    config |= arguments.get("pretrained_cfg_overlay", {})
    preprocessing = given.preprocessing
    if not isinstance(preprocessing, GivenPreprocessing):
        size = config["input_size"][-1]
        preprocessing = GivenPreprocessing(mean=config["mean"], std=config["std"], input_size=size)

    def read() -> Mapping[str, Tensor]:
        if given.file is not None:
            return read_state(Path(given.file))
        return create_timm_model(tagged, num_classes=None, arguments=arguments).state_dict()

    class_names = [] if given.file else timm_class_names(timm, config)
    kept = {k: v for k, v in arguments.items() if k != "pretrained_cfg_overlay"}
    return Found(f"{TIMM}{given.name}", kept, class_names, preprocessing, read)


def _find_module(given: GivenModule) -> Found:
    read = partial(read_state, Path(given.file))
    architecture = f"{MODULE}{given.import_path}"
    return Found(architecture, given.arguments, [], given.preprocessing, read)
