"""Checkpoints: safetensors for the weights, JSON for everything else. No pickle."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kd_pipeline.atomic import replace_folder
from kd_pipeline.checksums import checked_dumps, checked_loads
from kd_pipeline.errors import CheckpointError, ParameterError
from kd_pipeline.import_path import MODULE
from kd_pipeline.models.architectures import (
    build_network,
    code_digest,
    logits_digest,
    num_channels,
)
from kd_pipeline.models.classifier import Classifier
from kd_pipeline.models.onnx_graph import OnnxNetwork
from kd_pipeline.models.preprocessing import Preprocessing
from kd_pipeline.models.pretrained import load_strictly
from kd_pipeline.models.settings import Model
from kd_pipeline.provenance import check_provenance
from kd_pipeline.randomness import seeded

WEIGHTS_FILE = "model.safetensors"
QUANTISED_FILE = "quantised.safetensors"
DESCRIPTION_FILE = "model.json"
DATA_FACTS = ("images", "splits", "labels")
"""What a trained model's facts hold of its data."""
_REMEDY = "train it again, or copy it again from where it is whole"


@dataclass(frozen=True)
class ModelCheckpoint:
    """All that is needed to rebuild a trained classifier, and facts of its training."""

    architecture: str
    arguments: Mapping[str, Any]
    class_names: tuple[str, ...]
    preprocessing: Preprocessing
    state: Mapping[str, Tensor]
    """The network's state dict, on the CPU."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """JSON-able: seeds, steps, fingerprints of the training data, costs."""
    class_order: tuple[int, ...] | None = None
    """Which of the network's outputs each of `class_names` is; None keeps their order."""
    code: str | None = None
    """The architecture's `code_digest` when it was trained or given."""
    logits_digest: str | None = None
    """That of a user's own network, given as a teacher: its code may call code that changes."""
    quantised_state: Mapping[str, Tensor] | None = None
    """The same state dict after fine-tuning for int8; None where there was none."""

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits over everything but `facts`."""
        quantised = {f"quantised/{k}": v for k, v in (self.quantised_state or {}).items()}
        text = json.dumps(self._description(), sort_keys=True)
        return tensors_digest({**self.state, **quantised}, text)

    def _description(self) -> dict[str, Any]:
        names = ("class_order", "code", "logits_digest")
        optional = {name: getattr(self, name) for name in names}
        return {
            "architecture": self.architecture,
            "arguments": dict(self.arguments),
            "class_names": self.class_names,
            "preprocessing": asdict(self.preprocessing),
            **{key: value for key, value in optional.items() if value is not None},
        }


def tensors_digest(tensors: Mapping[str, Tensor], text: str = "") -> str:
    """16 hex digits over a text and named tensors, whatever their device and memory layout."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def snapshot(
    classifier: Classifier,
    model: Model,
    *,
    class_names: tuple[str, ...],
    facts: Mapping[str, Any],
    quantised_state: Mapping[str, Tensor] | None = None,
) -> ModelCheckpoint:
    """Copy a classifier's weights into a checkpoint."""
    return ModelCheckpoint(
        model.name,
        model.arguments,
        class_names,
        classifier.preprocessing,
        copy_state(classifier.network),
        facts,
        code=code_digest(model.name),
        quantised_state=quantised_state,
    )


def copy_state(network: nn.Module) -> dict[str, Tensor]:
    """Copy a network's state dict to the CPU, tied weights apart."""
    return {name: value.cpu().clone() for name, value in network.state_dict().items()}


def build_untrained(
    model: Model, preprocessing: Preprocessing, *, num_classes: int, seed: int
) -> Classifier:
    """Build a classifier whose initial weights depend on the seed alone.

    The images' `preprocessing` is adapted to the network's input.

    Raises:
        ParameterError: If the name or an argument of `model` is unknown.
    """
    channels = num_channels(model.name, preprocessing.shape[0])
    preprocessing = preprocessing.resized(model.input_size, num_channels=channels)
    try:
        with seeded(seed):
            network = build_network(
                model.name,
                shape=preprocessing.shape,
                num_classes=num_classes,
                arguments=model.arguments,
            )
    except ParameterError as error:
        raise error.within("model") from error
    takes_any_layout = not model.name.startswith(MODULE)
    return Classifier(network, preprocessing, takes_any_layout=takes_any_layout)


def build_classifier(checkpoint: ModelCheckpoint) -> Classifier:
    """Rebuild a trained classifier, in eval mode, on the CPU.

    Raises:
        CheckpointError: If the weights do not fit the architecture and class names.
    """
    is_graph = checkpoint.architecture == OnnxNetwork.architecture
    return Classifier(
        OnnxNetwork(checkpoint.state) if is_graph else _build_trained(checkpoint),
        checkpoint.preprocessing,
        class_order=checkpoint.class_order,
        takes_any_layout=not checkpoint.architecture.startswith(MODULE),
    ).eval()


def _build_trained(checkpoint: ModelCheckpoint) -> nn.Module:
    architecture, num_classes = checkpoint.architecture, len(checkpoint.class_names)
    changed = CheckpointError(
        f"the code of {architecture} has changed since this model was trained or given, and so "
        "may its logits; train it, or run `kedro run --pipelines=teacher_training`, again"
    )
    if checkpoint.code is not None and checkpoint.code != code_digest(architecture):
        raise changed
    with seeded(0):
        network = build_network(
            architecture,
            shape=checkpoint.preprocessing.shape,
            num_classes=num_classes,
            arguments=checkpoint.arguments,
        )
    load_strictly(network, checkpoint.state, f"{architecture} with {num_classes} classes")
    if checkpoint.logits_digest is not None:
        found = logits_digest(network, checkpoint.preprocessing.shape)
        if found != checkpoint.logits_digest:
            raise changed
    return network


def check_classes(checkpoint: ModelCheckpoint, class_names: tuple[str, ...], *, name: str) -> None:
    """Refuse a checkpoint of other classes, or of the same in another order.

    Raises:
        CheckpointError: With the first difference.
    """
    given = checkpoint.class_names
    if given == class_names:
        return
    difference = f"{len(given)} classes where the images have {len(class_names)}"
    if len(given) == len(class_names):
        at = next(i for i, wanted in enumerate(class_names) if given[i] != wanted)
        difference = f"class {at} is {given[at]!r} where the images have {class_names[at]!r}"
    raise CheckpointError(f"`{name}` must have the images' classes in their order: {difference}")


def check_training_data(checkpoint: ModelCheckpoint, at_hand: Mapping[str, Any]) -> None:
    """Refuse a teacher trained on other images, splits or labels, perhaps on the test set.

    A given teacher whose facts hold none of them passes.

    Args:
        checkpoint: Of a teacher.
        at_hand: `DATA_FACTS` of this run, among others.

    Raises:
        StaleArtefactError: If one differs.
    """
    stated = {name: at_hand[name] for name in DATA_FACTS if name in checkpoint.facts}
    remedy = "run `kedro run --pipelines=teacher_training`"
    check_provenance("teacher.checkpoints", checkpoint.facts, stated, remedy=remedy)


def write_checkpoint(checkpoint: ModelCheckpoint, folder: Path) -> None:
    """Write a checkpoint's files into a folder that appears whole or not at all."""
    description = checkpoint._description() | {
        "fingerprint": checkpoint.fingerprint,
        "facts": dict(checkpoint.facts),
    }
    states = {WEIGHTS_FILE: checkpoint.state, QUANTISED_FILE: checkpoint.quantised_state}
    with replace_folder(folder) as temporary:
        (temporary / DESCRIPTION_FILE).write_text(checked_dumps(description, indent=2) + "\n")
        for file, state in states.items():
            if state is not None:
                tensors = {name: tensor.contiguous() for name, tensor in state.items()}
                save_file(tensors, temporary / file)
                # safetensors makes files that no other user may read.
                (temporary / file).chmod((temporary / DESCRIPTION_FILE).stat().st_mode)


def read_checkpoint(folder: Path) -> ModelCheckpoint:
    """Read a checkpoint.

    Raises:
        CheckpointError: If a file is missing or damaged, or the fingerprint differs.
    """
    try:
        description = checked_loads((folder / DESCRIPTION_FILE).read_bytes())
        state = load_file(folder / WEIGHTS_FILE)
        quantised = folder / QUANTISED_FILE
        preprocessing, order = description["preprocessing"], description.get("class_order")
        checkpoint = ModelCheckpoint(
            architecture=description["architecture"],
            arguments=description["arguments"],
            class_names=tuple(description["class_names"]),
            preprocessing=Preprocessing(**{k: tuple(v) for k, v in preprocessing.items()}),
            state=state,
            facts=description["facts"],
            class_order=None if order is None else tuple(order),
            code=description.get("code"),
            logits_digest=description.get("logits_digest"),
            quantised_state=load_file(quantised) if quantised.exists() else None,
        )
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"no readable checkpoint in {folder}: {error}; {_REMEDY}") from error
    if checkpoint.fingerprint != description.get("fingerprint"):
        raise CheckpointError(
            f"the checkpoint in {folder} is damaged: its fingerprint differs; {_REMEDY}"
        )
    return checkpoint


def read_checkpoints(folder: Path) -> list[ModelCheckpoint]:
    """Read the checkpoints at `folder/<position>/`, in order; an empty folder is an empty list.

    Raises:
        CheckpointError: If the folder or a position is missing, or a checkpoint is damaged.
    """
    found = folder.iterdir() if folder.is_dir() else ()
    positions = sorted(int(path.name) for path in found if path.name.isdigit())
    if not folder.is_dir() or positions != list(range(len(positions))):
        raise CheckpointError(
            f"no complete set of checkpoints in {folder}: found "
            f"{[str(position) for position in positions]}; run the stage that makes them"
        )
    return [read_checkpoint(folder / str(position)) for position in positions]


def count_costs(classifier: Classifier) -> dict[str, int]:
    """`model/parameters`, `model/macs` and `model/size_bytes` of a network."""
    return {
        "model/parameters": count_parameters(classifier.network),
        "model/macs": count_macs(classifier),
        "model/size_bytes": size_bytes(classifier.network.state_dict()),
    }


def size_bytes(state: Mapping[str, Tensor]) -> int:
    """Bytes of a state dict."""
    return sum(tensor.numel() * tensor.element_size() for tensor in state.values())


def count_parameters(network: nn.Module) -> int:
    """Number of weights, trainable and frozen."""
    return sum(parameter.numel() for parameter in network.parameters())


def count_macs(classifier: Classifier) -> int:
    """Multiply-accumulates of one image's forward pass, by torch's FLOP counter."""
    from torch.utils.flop_counter import FlopCounterMode

    was_training = classifier.training
    device = classifier.scale.device
    pixels = torch.zeros(1, *classifier.preprocessing.shape, dtype=torch.uint8, device=device)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        classifier.eval()(pixels)
    classifier.train(was_training)
    return int(counter.get_total_flops()) // 2
