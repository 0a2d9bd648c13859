"""Checkpoints: safetensors for the weights, JSON for all that is needed to use them. No pickle."""

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
from kd_pipeline.errors import CheckpointError
from kd_pipeline.models.architectures import build_network
from kd_pipeline.models.classifier import Classifier
from kd_pipeline.models.preprocessing import Preprocessing
from kd_pipeline.randomness import seeded

WEIGHTS_FILE = "model.safetensors"
DESCRIPTION_FILE = "model.json"


@dataclass(frozen=True)
class ModelCheckpoint:
    """Everything needed to rebuild a trained classifier, and what is known of its training."""

    architecture: str
    arguments: Mapping[str, Any]
    class_names: tuple[str, ...]
    preprocessing: Preprocessing
    state: Mapping[str, Tensor]
    """The network's state dict, on the CPU."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """JSON-able: seeds, steps, the fingerprints of what it was trained on, costs."""

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits over everything but `facts`: two equal ones predict alike."""
        return tensors_digest(self.state, json.dumps(self._description(), sort_keys=True))

    def _description(self) -> dict[str, Any]:
        return {
            "architecture": self.architecture,
            "arguments": dict(self.arguments),
            "class_names": list(self.class_names),
            "preprocessing": asdict(self.preprocessing),
        }


def tensors_digest(tensors: Mapping[str, Tensor], text: str = "") -> str:
    """16 hex digits over a text and named tensors, wherever and however these are laid out."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def snapshot(
    classifier: Classifier,
    *,
    architecture: str,
    arguments: Mapping[str, Any],
    class_names: tuple[str, ...],
    facts: Mapping[str, Any],
) -> ModelCheckpoint:
    """Copy a classifier's weights into a checkpoint."""
    state = {
        name: value.detach().cpu().clone()
        for name, value in classifier.network.state_dict().items()
    }
    return ModelCheckpoint(
        architecture, arguments, class_names, classifier.preprocessing, state, facts
    )


def build_untrained(
    *,
    architecture: str,
    arguments: Mapping[str, Any],
    preprocessing: Preprocessing,
    num_classes: int,
    seed: int,
) -> Classifier:
    """Build a classifier whose initial weights depend on the seed alone."""
    with seeded(seed):
        network = build_network(
            architecture, shape=preprocessing.shape, num_classes=num_classes, arguments=arguments
        )
    return Classifier(network, preprocessing)


def build_classifier(checkpoint: ModelCheckpoint) -> Classifier:
    """Rebuild a trained classifier, in eval mode, on the CPU.

    Raises:
        CheckpointError: If the weights do not fit the architecture and class names.
    """
    classifier = build_untrained(
        architecture=checkpoint.architecture,
        arguments=checkpoint.arguments,
        preprocessing=checkpoint.preprocessing,
        num_classes=len(checkpoint.class_names),
        seed=0,
    )
    try:
        classifier.network.load_state_dict(dict(checkpoint.state))
    except RuntimeError as error:
        raise CheckpointError(
            f"the weights do not fit {checkpoint.architecture} with "
            f"{len(checkpoint.class_names)} classes: {error}"
        ) from error
    return classifier.eval()


def check_classes(checkpoint: ModelCheckpoint, class_names: tuple[str, ...], *, name: str) -> None:
    """Refuse a checkpoint of other classes: a head is never re-initialised in silence.

    Raises:
        CheckpointError: Naming the first difference.
    """
    given = checkpoint.class_names
    if given == class_names:
        return
    if len(given) != len(class_names):
        difference = f"{len(given)} classes where the images have {len(class_names)}"
    else:
        at = next(
            i for i, pair in enumerate(zip(given, class_names, strict=True)) if len(set(pair)) > 1
        )
        difference = f"class {at} is {given[at]!r} where the images have {class_names[at]!r}"
    raise CheckpointError(f"`{name}` must have the images' classes in their order: {difference}")


def write_checkpoint(checkpoint: ModelCheckpoint, folder: Path) -> None:
    """Write a checkpoint's two files into a folder that appears whole or not at all."""
    description = checkpoint._description() | {
        "fingerprint": checkpoint.fingerprint,
        "facts": dict(checkpoint.facts),
    }
    with replace_folder(folder) as temporary:
        save_file(
            {k: v.contiguous() for k, v in checkpoint.state.items()}, temporary / WEIGHTS_FILE
        )
        text = json.dumps(description, indent=2, allow_nan=False)
        (temporary / DESCRIPTION_FILE).write_text(text + "\n")


def read_checkpoint(folder: Path) -> ModelCheckpoint:
    """Read a checkpoint and check it against its own fingerprint.

    Raises:
        CheckpointError: If a file is missing, damaged, or not what its description says.
    """
    try:
        description = json.loads((folder / DESCRIPTION_FILE).read_text())
        state = load_file(folder / WEIGHTS_FILE)
        preprocessing = description["preprocessing"]
        checkpoint = ModelCheckpoint(
            architecture=description["architecture"],
            arguments=description["arguments"],
            class_names=tuple(description["class_names"]),
            preprocessing=Preprocessing(**{k: tuple(v) for k, v in preprocessing.items()}),
            state=state,
            facts=description["facts"],
        )
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"no readable checkpoint in {folder}: {error}") from error
    if checkpoint.fingerprint != description.get("fingerprint"):
        raise CheckpointError(f"the checkpoint in {folder} is damaged: its fingerprint differs")
    return checkpoint


def count_parameters(network: nn.Module) -> int:
    """Number of trainable and frozen weights."""
    return sum(parameter.numel() for parameter in network.parameters())


def count_macs(classifier: Classifier) -> int:
    """Multiply-accumulates of one image's forward pass, counted by torch's own FLOP counter."""
    from torch.utils.flop_counter import FlopCounterMode

    was_training = classifier.training
    device = classifier.scale.device
    pixels = torch.zeros(1, *classifier.preprocessing.shape, dtype=torch.uint8, device=device)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        classifier.eval()(pixels)
    classifier.train(was_training)
    return int(counter.get_total_flops()) // 2
