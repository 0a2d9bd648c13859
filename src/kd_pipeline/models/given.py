"""Teachers trained elsewhere, read into checkpoints with the images' classes in their order."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from kd_pipeline.config import Computing
from kd_pipeline.errors import CheckpointError, ParameterError
from kd_pipeline.import_path import MODULE
from kd_pipeline.models.architectures import code_digest, logits_digest
from kd_pipeline.models.checkpoint import (
    ModelCheckpoint,
    build_classifier,
    copy_state,
    count_costs,
    read_checkpoint,
    size_bytes,
)
from kd_pipeline.models.classifier import Classifier
from kd_pipeline.models.given_networks import find_network
from kd_pipeline.models.onnx_graph import OnnxNetwork, read_onnx
from kd_pipeline.models.predict import predict_batches
from kd_pipeline.models.preprocessing import Preprocessing
from kd_pipeline.models.settings import (
    Given,
    GivenCheckpoint,
    GivenMlflow,
    GivenModule,
    GivenOnnx,
    GivenPreprocessing,
    GivenTimm,
    GivenTorchvision,
    NamedOutputs,
)


@dataclass(frozen=True)
class ImagesAtHand:
    """Images that a given teacher must suit."""

    class_names: tuple[str, ...]
    shape: tuple[int, int, int]
    """Channels, height and width."""
    some: Tensor
    """uint8 [num_images, *shape], at least two, to try the teacher on."""


@dataclass(frozen=True)
class FetchedModel:
    """A model downloaded from MLflow."""

    path: Path
    """The folder of a checkpoint of this project, or an ONNX file."""
    format: Literal["checkpoint", "onnx"]
    class_names: tuple[str, ...] | None
    """From the model's metadata."""


def read_given(
    given: Given, images: ImagesAtHand, *, name: str, fetched: FetchedModel | None = None
) -> ModelCheckpoint:
    """Read a network that was trained elsewhere.

    Args:
        given: An entry of `teacher.given`, of any kind but `logits`.
        images: Images that it must suit.
        name: Of the entry in YAML, for messages.
        fetched: The downloaded model, for an entry of kind `mlflow`.

    Raises:
        ParameterError: If a setting names nothing usable.
        CheckpointError: If the file is damaged or needs code to be read, the classes are not the
            images', or its outputs are not logits that depend on one image each.
    """
    try:
        if isinstance(given, GivenCheckpoint):
            return _read_own(Path(given.folder), given, images, name)
        if fetched is not None and fetched.format == "checkpoint":
            return _read_own(fetched.path, given, images, name)
        return _read_foreign(given, images, name, fetched)
    except ParameterError as error:
        raise error.within(name) from error


def _read_own(folder: Path, given: Given, images: ImagesAtHand, name: str) -> ModelCheckpoint:
    """A checkpoint of this project, with its facts and its classes in the images' order."""
    checkpoint = read_checkpoint(folder)
    names: Sequence[Sequence[str]] = [checkpoint.class_names]
    if isinstance(given, GivenMlflow):
        names = class_names_of(given, names, images.class_names, name=name)
        if given.preprocessing is not None:
            rule = "be left out: the model holds its own"
            raise ParameterError("preprocessing", rule, given.preprocessing.model_dump())
    order = match_classes(names, images.class_names, name=name)
    if order is not None:
        own = checkpoint.class_order or tuple(range(len(order)))
        composed = tuple(own[position] for position in order)
        checkpoint = replace(checkpoint, class_names=images.class_names, class_order=composed)
    build_classifier(checkpoint)  # Fails here, with the entry's name, and not in a later stage.
    return replace(checkpoint, facts={"given": _described(given), **checkpoint.facts})


def _read_foreign(
    given: Given, images: ImagesAtHand, name: str, fetched: FetchedModel | None
) -> ModelCheckpoint:
    if isinstance(given, GivenTorchvision | GivenTimm | GivenModule):
        checkpoint = _read_network(given, images, name)
    elif isinstance(given, GivenOnnx):
        checkpoint = _read_graph(Path(given.file), given, [], images, name)
    elif isinstance(given, GivenMlflow) and fetched is not None:
        declared = [] if fetched.class_names is None else [fetched.class_names]
        checkpoint = _read_graph(fetched.path, given, declared, images, name)
    else:
        raise ParameterError("kind", "be of a network that is at hand", given.kind)
    # In the network's own order: a head that is too small could not be reordered.
    try:
        classifier = build_classifier(replace(checkpoint, class_order=None))
    except CheckpointError as error:
        raise CheckpointError(f"`{name}` cannot be built: {error}") from error
    _check_logits(classifier, images, name)
    state, costs = checkpoint.state, {"model/size_bytes": size_bytes(checkpoint.state)}
    if checkpoint.architecture != OnnxNetwork.architecture:
        state, costs = copy_state(classifier.network), count_costs(classifier)
    facts = {"given": _described(given), "image_shape": list(images.shape), "costs": costs}
    digest = None
    if checkpoint.architecture.startswith(MODULE):
        digest = logits_digest(classifier.network, classifier.preprocessing.shape)
    return replace(checkpoint, state=state, facts=facts, logits_digest=digest)


def _read_network(
    given: GivenTorchvision | GivenTimm | GivenModule, images: ImagesAtHand, name: str
) -> ModelCheckpoint:
    found = find_network(given)
    names = class_names_of(given, found.class_names, images.class_names, name=name)
    order = match_classes(names, images.class_names, name=name)
    return ModelCheckpoint(
        found.architecture,
        found.arguments,
        images.class_names,
        _suited(found.preprocessing, images),
        found.read_state(),
        class_order=order,
        code=code_digest(found.architecture),
    )


def class_names_of(
    given: NamedOutputs,
    declared: Sequence[Sequence[str]],
    class_names: tuple[str, ...],
    *,
    name: str,
) -> Sequence[Sequence[str]]:
    """Names of a teacher's outputs: those set, else those declared by its weights or file.

    Raises:
        ParameterError: If neither names them.
    """
    if given.class_names == "images":
        return [class_names]
    if given.class_names is not None:
        return [given.class_names]
    if (file := given.class_names_file) is not None:
        if not Path(file).is_file():
            raise ParameterError(f"{name}.class_names_file", "be an existing file", file)
        try:
            lines = Path(file).read_text("utf-8").splitlines()
        except UnicodeDecodeError as error:
            rule = "be a text file in UTF-8"
            raise ParameterError(f"{name}.class_names_file", rule, file) from error
        return [[line.strip() for line in lines if line.strip()]]
    if not declared:
        rule = (
            "list the classes of the teacher's outputs in their order, which the file does not "
            "declare; or be `images`, to trust that it is the images' order"
        )
        raise ParameterError(f"{name}.class_names", rule, None)
    return declared


def match_classes(
    declared: Sequence[Sequence[str]], class_names: tuple[str, ...], *, name: str
) -> tuple[int, ...] | None:
    """Find each of the images' classes among a teacher's outputs, by name.

    Args:
        declared: The names of the outputs, in order; one list per way of naming them.
        class_names: The images' classes.
        name: Of the entry in YAML, for messages.

    Returns:
        The position of each class among the outputs; None where the order is the same.

    Raises:
        CheckpointError: With the difference, if the classes are not the same ones.
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
    parts = [counts] if len(given) != len(wanted) else []
    for what, found in (
        ("named twice", sorted({n for n in given if list(given).count(n) > 1})),
        ("only in the teacher", sorted(set(given) - set(wanted))),
        ("only in the images", sorted(set(wanted) - set(given))),
    ):
        if found:
            parts.append(f"{what}: {', '.join(found[:5])}{' ...' if len(found) > 5 else ''}")
    return "; ".join(parts)


def _read_graph(
    file: Path,
    given: GivenOnnx | GivenMlflow,
    declared: Sequence[Sequence[str]],
    images: ImagesAtHand,
    name: str,
) -> ModelCheckpoint:
    names = class_names_of(given, declared, images.class_names, name=name)
    order = match_classes(names, images.class_names, name=name)
    network = read_onnx(file)
    preprocessing = _graph_preprocessing(network, given.preprocessing, images)
    return ModelCheckpoint(
        OnnxNetwork.architecture,
        {},
        images.class_names,
        preprocessing,
        network.files,
        class_order=order,
    )


def _graph_preprocessing(
    network: OnnxNetwork, setting: GivenPreprocessing | None, images: ImagesAtHand
) -> Preprocessing:
    _, channels, height, width = network.input_shape
    if network.takes_raw_pixels:
        if setting is not None:
            rule = "be left out: the graph takes uint8 pixels and normalises them itself"
            raise ParameterError("preprocessing", rule, setting.model_dump())
        same = channels or images.shape[0]
        setting = GivenPreprocessing(mean=(0.0,) * same, std=(1.0,) * same)
    elif setting is None:
        rule = "be what the graph takes: {mean: [..], std: [..]}; 0 and 1 for pixels in [0, 1]"
        raise ParameterError("preprocessing", rule, None)
    found = _suited(setting, images)
    if channels not in (None, found.shape[0]):
        rule = f"have one mean for each of the graph's {channels} channels"
        raise ParameterError("preprocessing.mean", rule, found.mean)
    side = found.shape[1:]
    fixed = (height or side[0], width or side[1])
    if setting.input_size is not None and fixed != side:
        rule = f"be the graph's own size {fixed} or null"
        raise ParameterError("preprocessing.input_size", rule, setting.input_size)
    return replace(found, shape=(found.shape[0], *fixed))


def _suited(setting: GivenPreprocessing, images: ImagesAtHand) -> Preprocessing:
    channels, height, width = images.shape
    if len(setting.mean) != channels and channels != 1:
        rule = f"have one mean for each of the images' {channels} channels"
        raise ParameterError("preprocessing.mean", rule, setting.mean)
    shape = (len(setting.mean), setting.input_size or height, setting.input_size or width)
    return Preprocessing(shape, setting.mean, setting.std)


def _check_logits(classifier: Classifier, images: ImagesAtHand, name: str) -> None:
    """Try a teacher on a few images, and refuse outputs that are not each image's own logits."""
    some, computing = images.some, Computing(device="cpu")
    try:
        together = predict_batches(classifier, [some], computing)
        alone = predict_batches(classifier, [some[:1], some[1:2]], computing)
    except (RuntimeError, ValueError, IndexError, TypeError, AttributeError) as error:
        shape = classifier.preprocessing.shape
        raise CheckpointError(f"`{name}` cannot score images of shape {shape}: {error}") from error
    expected = (len(some), len(images.class_names))
    if together.shape != expected:
        raise CheckpointError(
            f"`{name}` must give logits of shape {expected} for {len(some)} images, got "
            f"{tuple(together.shape)}"
        )
    if problem := _problem(together, alone):
        raise CheckpointError(f"`{name}` must give logits, got {problem}")


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


def _described(given: Given) -> dict[str, Any]:
    described = given.model_dump(mode="json", exclude_none=True)
    if len(names := described.get("class_names", ())) > 20:
        described["class_names"] = f"{len(names)} names"
    return described
