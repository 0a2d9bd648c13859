"""Teachers from elsewhere, read into checkpoints: classes by name, preprocessing as declared.

Every kind ends as a `ModelCheckpoint` whose classes are the images', in their order, so that no
later stage knows where a teacher comes from.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kd_pipeline.errors import CheckpointError, ParameterError
from kd_pipeline.models.architectures import code_digest
from kd_pipeline.models.checkpoint import (
    GRAPHS,
    IMPORTED_LOGITS,
    ModelCheckpoint,
    build_classifier,
    count_macs,
    count_parameters,
    read_checkpoint,
)
from kd_pipeline.models.file_bytes import state_of
from kd_pipeline.models.given_networks import read_module, read_timm, read_torchvision
from kd_pipeline.models.onnx_graph import OnnxNetwork, read_onnx
from kd_pipeline.models.predict import predict_batches
from kd_pipeline.models.preprocessing import Preprocessing


@dataclass(frozen=True)
class ImagesAtHand:
    """What a given teacher must suit."""

    class_names: tuple[str, ...]
    shape: tuple[int, int, int]
    """Channels, height and width."""
    some: Tensor
    """uint8 [num_images, *shape]: a few of them, to try the teacher on."""


def read_given(entry: Mapping[str, Any], images: ImagesAtHand, *, name: str) -> ModelCheckpoint:
    """Read a network that was trained elsewhere.

    Args:
        entry: One of `teacher.given`, of any kind but `logits`; an `mlflow` entry has what was
            fetched for it under `model`.
        images: What it must suit.
        name: Of the entry in YAML, for messages.

    Raises:
        ParameterError: If a setting names nothing usable.
        CheckpointError: If the file is damaged or needs code to be read, the classes are not the
            images', or what it answers are not one image's logits.
    """
    if entry["kind"] == "checkpoint":
        return _read_checkpoint(Path(entry["folder"]), images, name)
    try:
        checkpoint = _READERS[entry["kind"]](entry, images, name)
    except ParameterError as error:
        raise error.within(name) from error
    check_answers(checkpoint, images.some, name=name)
    facts = {
        "given": _described(entry),
        "image_shape": list(images.shape),
        "costs": _costs(checkpoint),
    }
    return replace(checkpoint, facts=facts)


def _read_checkpoint(folder: Path, images: ImagesAtHand, name: str) -> ModelCheckpoint:
    checkpoint = with_classes_of(read_checkpoint(folder), images.class_names, name=name)
    if checkpoint.architecture != IMPORTED_LOGITS:
        try:
            # What later stages could not build is refused here, where the entry's name is known.
            build_classifier(checkpoint)
        except ParameterError as error:
            raise error.within(name) from error
    return checkpoint


def with_classes_of(
    checkpoint: ModelCheckpoint, class_names: tuple[str, ...], *, name: str
) -> ModelCheckpoint:
    """The same classifier with its classes in another order."""
    order = match_classes([checkpoint.class_names], class_names, name=name)
    if order is None:
        return checkpoint
    own = checkpoint.class_order or tuple(range(len(order)))
    composed = tuple(own[position] for position in order)
    return replace(checkpoint, class_names=class_names, class_order=composed)


def match_classes(
    declared: Sequence[Sequence[str]], class_names: tuple[str, ...], *, name: str
) -> tuple[int, ...] | None:
    """Find each of the images' classes among a teacher's outputs, by name.

    Args:
        declared: The names of the outputs, in order; several where a library knows several.
        class_names: The images' classes.
        name: Of the entry in YAML.

    Returns:
        The output of each class; None where the order is the same.

    Raises:
        CheckpointError: If the classes are not the same ones, naming what differs.
    """
    fitting = next((n for n in declared if sorted(n) == sorted(class_names)), None)
    if fitting is None:
        raise CheckpointError(
            f"`{name}` must have the images' classes: {_difference(declared[0], class_names)}"
        )
    order = tuple(list(fitting).index(wanted) for wanted in class_names)
    return None if order == tuple(range(len(order))) else order


def _difference(given: Sequence[str], wanted: Sequence[str]) -> str:
    counts = f"{len(given)} classes where the images have {len(wanted)}"
    told = [counts] if len(given) != len(wanted) else []
    doubles = sorted({n for n in given if list(given).count(n) > 1})
    for what, found in (
        ("named twice", doubles),
        ("only in the teacher", sorted(set(given) - set(wanted))),
        ("only in the images", sorted(set(wanted) - set(given))),
    ):
        if found:
            told.append(f"{what}: {', '.join(found[:5])}{' ...' if len(found) > 5 else ''}")
    return "; ".join(told)


def class_names_of(
    entry: Mapping[str, Any],
    declared: Sequence[Sequence[str]],
    images: ImagesAtHand,
    *,
    name: str,
) -> Sequence[Sequence[str]]:
    """The names of a teacher's outputs: as set, else as declared by its weights or file.

    Raises:
        ParameterError: If nobody says.
    """
    if entry["class_names"] == "images":
        return [images.class_names]
    if entry["class_names"] is not None:
        return [entry["class_names"]]
    if (file := entry["class_names_file"]) is not None:
        if not Path(file).is_file():
            raise ParameterError(f"{name}.class_names_file", "be an existing file", file)
        return [[line.strip() for line in Path(file).read_text().splitlines() if line.strip()]]
    if not declared:
        rule = (
            "list the classes of the teacher's outputs in their order, which the file does not "
            "declare; or be `images`, to trust that it is the images' order"
        )
        raise ParameterError(f"{name}.class_names", rule, None)
    return declared


def _read_weights(entry: Mapping[str, Any], images: ImagesAtHand, name: str) -> ModelCheckpoint:
    read = {"torchvision": read_torchvision, "timm": read_timm}[entry["kind"]]
    found = read(entry, num_classes=len(images.class_names), name=name)
    names = class_names_of(entry, found.class_names, images, name=name)
    order = match_classes(names, images.class_names, name=name)
    preprocessing = _preprocessing(
        entry["preprocessing"] if isinstance(entry["preprocessing"], Mapping) else found.declared,
        images,
        name=name,
    )
    # Only now: the weights may have to be downloaded first.
    network, arguments = found.load()
    return _checkpoint(found.architecture, arguments, network, images, preprocessing, order)


def _read_module(entry: Mapping[str, Any], images: ImagesAtHand, name: str) -> ModelCheckpoint:
    names = class_names_of(entry, [], images, name=name)
    order = match_classes(names, images.class_names, name=name)
    preprocessing = _preprocessing(entry["preprocessing"], images, name=name)
    architecture, network = read_module(entry, name=name)
    return _checkpoint(architecture, entry["arguments"], network, images, preprocessing, order)


def _checkpoint(
    architecture: str,
    arguments: Mapping[str, Any],
    network: nn.Module,
    images: ImagesAtHand,
    preprocessing: Preprocessing,
    order: tuple[int, ...] | None,
) -> ModelCheckpoint:
    state = {key: value.detach().clone() for key, value in network.state_dict().items()}
    return ModelCheckpoint(
        architecture,
        arguments,
        images.class_names,
        preprocessing,
        state,
        class_order=order,
        code=code_digest(architecture),
    )


def _read_onnx(entry: Mapping[str, Any], images: ImagesAtHand, name: str) -> ModelCheckpoint:
    return _graph_checkpoint(OnnxNetwork.architecture, entry, [], images, name)


def _read_mlflow(entry: Mapping[str, Any], images: ImagesAtHand, name: str) -> ModelCheckpoint:
    fetched = entry["model"]
    declared = [] if fetched["class_names"] is None else [fetched["class_names"]]
    entry = {**entry, "file": fetched["file"]}
    return _graph_checkpoint(fetched["format"], entry, declared, images, name)


def _graph_checkpoint(
    architecture: str,
    entry: Mapping[str, Any],
    declared: Sequence[Sequence[str]],
    images: ImagesAtHand,
    name: str,
) -> ModelCheckpoint:
    names = class_names_of(entry, declared, images, name=name)
    order = match_classes(names, images.class_names, name=name)
    file = Path(entry["file"])
    if not file.is_file():
        raise ParameterError(f"{name}.file", "be an existing file", str(file))
    is_onnx = architecture == OnnxNetwork.architecture
    state = read_onnx(file) if is_onnx else state_of(file.read_bytes())
    network = GRAPHS[architecture](state)
    preprocessing = _graph_preprocessing(network, entry["preprocessing"], images, name=name)
    return ModelCheckpoint(
        architecture, {}, images.class_names, preprocessing, state, class_order=order
    )


def _graph_preprocessing(
    network: Any, setting: Mapping[str, Any] | None, images: ImagesAtHand, *, name: str
) -> Preprocessing:
    _, channels, height, width = network.input_shape
    if network.num_outputs not in (None, len(images.class_names)):
        raise CheckpointError(
            f"`{name}` must have the images' classes: {network.num_outputs} outputs where the "
            f"images have {len(images.class_names)} classes"
        )
    if network.takes_raw_pixels:
        if setting is not None:
            rule = "be left out: the graph takes uint8 pixels and normalises them itself"
            raise ParameterError(f"{name}.preprocessing", rule, dict(setting))
        same = channels or images.shape[0]
        setting = {"mean": (0.0,) * same, "std": (1.0,) * same, "input_size": None}
    elif setting is None:
        rule = "say what the graph takes: {mean: [..], std: [..]}; 0 and 1 for pixels in [0, 1]"
        raise ParameterError(f"{name}.preprocessing", rule, None)
    found = _preprocessing(setting, images, name=name)
    if channels not in (None, found.shape[0]):
        rule = f"have one mean for each of the graph's {channels} channels"
        raise ParameterError(f"{name}.preprocessing.mean", rule, found.mean)
    side = found.shape[1:]
    fixed = (height or side[0], width or side[1])
    if setting["input_size"] is not None and fixed != side:
        rule = f"be the graph's own size {fixed} or null"
        raise ParameterError(f"{name}.preprocessing.input_size", rule, setting["input_size"])
    return replace(found, shape=(found.shape[0], *fixed))


def _preprocessing(setting: Mapping[str, Any], images: ImagesAtHand, *, name: str) -> Preprocessing:
    mean, std, size = tuple(setting["mean"]), tuple(setting["std"]), setting["input_size"]
    channels, height, width = images.shape
    if len(mean) != channels and channels != 1:
        rule = f"have one mean for each of the images' {channels} channels"
        raise ParameterError(f"{name}.preprocessing.mean", rule, mean)
    side = (height, width) if size is None else (size, size)
    return Preprocessing((len(mean), *side), mean, std)


def check_answers(checkpoint: ModelCheckpoint, images: Tensor, *, name: str) -> None:
    """Try a teacher on a few images, and refuse what are not each image's own logits.

    Args:
        checkpoint: Of a given network.
        images: uint8 [num_images, channels, height, width], at least two.
        name: Of the entry in YAML.

    Raises:
        CheckpointError: If it cannot score them, the head has another size, or it answers with
            probabilities, with NaN, or otherwise for an image alone than among others.
    """
    # In the network's own order: a head that is too small could not be reordered.
    classifier = build_classifier(replace(checkpoint, class_order=None))
    try:
        together, alone = (
            predict_batches(classifier, batches, device="cpu", precision="float32")
            for batches in ([images], (images[:1], images[1:2]))
        )
    except (RuntimeError, ValueError, IndexError, TypeError, AttributeError) as error:
        shape = checkpoint.preprocessing.shape
        raise CheckpointError(f"`{name}` cannot score images of shape {shape}: {error}") from error
    expected = (len(images), len(checkpoint.class_names))
    if together.shape != expected:
        raise CheckpointError(
            f"`{name}` must give logits of shape {expected} for {len(images)} images, got "
            f"{tuple(together.shape)}"
        )
    if problem := _problem(together, alone):
        raise CheckpointError(f"`{name}` must answer with logits, got {problem}")


def _problem(together: Tensor, alone: Tensor) -> str | None:
    if not torch.isfinite(together).all():
        return "NaN or infinity"
    sums = together.sum(dim=1)
    if (together >= 0).all() and torch.allclose(sums, torch.ones_like(sums), atol=1e-3):
        return "probabilities that sum to 1: take the layer before the softmax"
    slack = 1e-2 * (1 + float(together.abs().max()))
    if float((together[: len(alone)] - alone).abs().max()) > slack:
        return (
            "other values for an image alone than among others: the model was saved in train mode "
            "(dropout, batch statistics)"
        )
    return None


def _described(entry: Mapping[str, Any]) -> dict[str, Any]:
    shown = {key: value for key, value in entry.items() if value is not None and key != "model"}
    if len(names := shown.get("class_names", ())) > 20:
        shown["class_names"] = f"{len(names)} names"
    return shown


def _costs(checkpoint: ModelCheckpoint) -> dict[str, int]:
    tensors = checkpoint.state.values()
    size = {"model/size_bytes": sum(t.numel() * t.element_size() for t in tensors)}
    if checkpoint.architecture in GRAPHS:
        return size  # A file of a graph tells neither its weights nor its operations.
    classifier = build_classifier(checkpoint)
    counts = {
        "model/parameters": count_parameters(classifier.network),
        "model/macs": count_macs(classifier),
    }
    return {**counts, **size}


_READERS: dict[str, Callable[[Mapping[str, Any], ImagesAtHand, str], ModelCheckpoint]] = {
    "torchvision": _read_weights,
    "timm": _read_weights,
    "module": _read_module,
    "onnx": _read_onnx,
    "mlflow": _read_mlflow,
}
