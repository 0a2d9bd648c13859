"""Optional packages; torchvision's and timm's networks by name, and what their weights declare."""

import difflib
import importlib
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from kd_pipeline.errors import CheckpointError, ParameterError
from kd_pipeline.models.settings import GivenPreprocessing

AUXILIARY_HEADS = {"googlenet": ("aux1.", "aux2."), "inception_v3": ("AuxLogits.",)}
"""Prefixes of the weights of heads that only training from scratch uses: they are left out."""


def suggest(name: str, known: Sequence[str]) -> list[str] | None:
    """The known names nearest to a misspelt one; None where none is near."""
    return difflib.get_close_matches(name, known, n=5, cutoff=0.4) or None


def list_torchvision_models() -> list[str]:
    """Names of torchvision's classification architectures."""
    import torchvision

    return list(torchvision.models.list_models(module=torchvision.models))


def build_torchvision_model(
    name: str, *, shape: tuple[int, int, int], num_classes: int, **arguments: Any
) -> nn.Module:
    """Build a torchvision classification architecture, all of which take three channels."""
    import torchvision

    if "weights" in arguments:
        rule = "not be a model argument: name it under `pretrained.weights`"
        raise ParameterError("arguments.weights", rule, arguments["weights"])
    if name in AUXILIARY_HEADS:  # With them the logits would be a named tuple.
        arguments = {"aux_logits": False, "init_weights": True, **arguments}
    if shape[0] != 3:
        rule = "be an architecture of this project for images of other than 1 or 3 channels"
        raise ParameterError("name", rule, name)
    network: nn.Module = torchvision.models.get_model(
        name, weights=None, num_classes=num_classes, **arguments
    )
    return network


def torchvision_weights(
    architecture: str, weights: str | None
) -> tuple[Any, tuple[str, ...], GivenPreprocessing]:
    """Look up weights of a torchvision architecture, without a download; None: its default ones.

    Returns:
        The member of its weights enum, the names of the classes, and the preprocessing.
    """
    import torchvision

    if architecture not in list_torchvision_models():
        rule = f"be null for {architecture}, which torchvision has no weights for"
        raise ParameterError("weights", rule, weights)
    enum = torchvision.models.get_model_weights(architecture)
    names, weights = [str(member.name) for member in enum], weights or "DEFAULT"
    if weights not in (*names, "DEFAULT"):
        raise ParameterError("weights", f"be weights of {architecture}", weights, legal=names)
    member = enum[weights]
    usual = member.transforms()
    size = usual.crop_size[0]
    preprocessing = GivenPreprocessing(mean=usual.mean, std=usual.std, input_size=size)
    return member, tuple(member.meta["categories"]), preprocessing


def require(package: str, *, extra: str, parameter: str = "kind") -> Any:
    """Import a package of one of this project's optional extras.

    Raises:
        ParameterError: With how to install it where it is missing.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        rule = f"have {package} installed: pip install 'kd_pipeline[{extra}]'"
        raise ParameterError(parameter, rule, extra) from error


@contextmanager
def quiet_export() -> Iterator[None]:
    """Hide what exporters and quantisers write for their developers; torch's random state is kept.

    torch.export, onnxscript, torchao and, through the root logger, onnxruntime's quantiser do so.
    """
    loggers = [logging.getLogger(name) for name in (None, "onnxscript", "torch")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        try:
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def find_timm(name: str, arguments: Mapping[str, Any]) -> Any:
    """Import timm and check that `timm.create_model` would build its own network, and no file's.

    Raises:
        ParameterError: If timm has no such name, or an argument names a file or the classes.
    """
    timm = require("timm", extra="timm")
    if not timm.is_model(name):  # A hub's, or a folder's.
        legal = suggest(name.partition(".")[0], timm.list_models())
        raise ParameterError("name", "be a model of timm's", name, legal=legal)
    if refused := sorted({"checkpoint_path", "pretrained_cfg", "cache_dir"} & set(arguments)):
        rule = "name no files: those go under `file`"
        raise ParameterError("arguments", rule, ", ".join(refused))
    if "num_classes" in arguments:
        # With pretrained weights timm would silently start a head of that size afresh.
        rule = "be left out: the head has the images' classes, or those of the weights"
        raise ParameterError("arguments.num_classes", rule, arguments["num_classes"])
    return timm


def create_timm_model(
    name: str, *, num_classes: int | None, arguments: Mapping[str, Any]
) -> nn.Module:
    """Build a network of timm's.

    Args:
        name: As timm spells it.
        num_classes: Of an untrained network; None loads or downloads the weights of this name.
        arguments: Further ones of `timm.create_model`.

    Raises:
        ParameterError: If timm has no such name, or the arguments do not suit it.
        CheckpointError: If the weights cannot be downloaded.
    """
    timm = find_timm(name, arguments)
    head = {"pretrained": True} if num_classes is None else {"num_classes": num_classes}
    try:
        network: nn.Module = timm.create_model(name, **head, **arguments)
    except OSError as error:
        raise cannot_download(f"of timm's {name}", error) from error
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        rule = f"be a model of timm's that takes `arguments` ({error})"
        raise ParameterError("name", rule, name) from error
    return network


def cannot_download(weights: str, error: OSError) -> CheckpointError:
    """The error to raise for weights that a library could not fetch."""
    return CheckpointError(
        f"the weights {weights} could not be downloaded ({error}); download them elsewhere and "
        "name the file under `file`"
    )


def timm_class_names(timm: Any, config: Mapping[str, Any]) -> list[Sequence[str]]:
    """Names of the outputs: those in the weights' config, else ImageNet's WordNet ids and words."""
    if config.get("label_names"):
        return [list(config["label_names"])]
    subset = timm.data.infer_imagenet_subset(dict(config))
    if subset is None:
        return []
    info = timm.data.ImageNetInfo(subset)
    return [info.label_names(), info.label_descriptions()]
