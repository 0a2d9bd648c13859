"""Checkpoints: safetensors for the weights, JSON for all that is needed to use them. No pickle."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kd_pipeline.atomic import replace_folder
from kd_pipeline.errors import CheckpointError, StaleArtefactError
from kd_pipeline.models.architectures import MODULE, build_network, code_digest, num_channels
from kd_pipeline.models.classifier import Classifier
from kd_pipeline.models.exported_program import ExportedNetwork
from kd_pipeline.models.onnx_graph import OnnxNetwork
from kd_pipeline.models.preprocessing import Preprocessing
from kd_pipeline.randomness import seeded

WEIGHTS_FILE = "model.safetensors"
DESCRIPTION_FILE = "model.json"
IMPORTED_LOGITS = "imported_logits"
"""Architecture of a checkpoint that holds what a model said instead of the model."""
GRAPHS: dict[str, Callable[[Mapping[str, Tensor]], nn.Module]] = {
    OnnxNetwork.architecture: OnnxNetwork,
    ExportedNetwork.architecture: ExportedNetwork,
}
"""Networks that are a file: their state holds its bytes, and no weights by name."""


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
    class_order: tuple[int, ...] | None = None
    """Which of the network's outputs each of `class_names` is; None is the network's own order."""
    code: str | None = None
    """Digest of a user's own class, as `code_digest` gives it; None for all others."""

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits over everything but `facts`: two equal ones predict alike."""
        return tensors_digest(self.state, json.dumps(self._description(), sort_keys=True))

    def _description(self) -> dict[str, Any]:
        order = {} if self.class_order is None else {"class_order": list(self.class_order)}
        code = {} if self.code is None else {"code": self.code}
        return {
            "architecture": self.architecture,
            "arguments": dict(self.arguments),
            "class_names": list(self.class_names),
            "preprocessing": asdict(self.preprocessing),
            **order,
            **code,
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
    """Build a classifier whose initial weights depend on the seed alone.

    Args:
        architecture: As in `build_network`.
        arguments: The architecture's own.
        preprocessing: Of the images; grey is repeated for networks that take colours only.
        num_classes: Width of the head.
        seed: Of the initial weights.
    """
    channels = num_channels(architecture, preprocessing.shape[0])
    preprocessing = preprocessing.resized(None, num_channels=channels)
    with seeded(seed):
        network = build_network(
            architecture, shape=preprocessing.shape, num_classes=num_classes, arguments=arguments
        )
    return Classifier(network, preprocessing, takes_any_layout=not is_foreign(architecture))


def build_classifier(checkpoint: ModelCheckpoint) -> Classifier:
    """Rebuild a trained classifier, in eval mode, on the CPU.

    Raises:
        CheckpointError: If the weights do not fit the architecture and class names, or the
            checkpoint holds imported logits and no model.
    """
    architecture = checkpoint.architecture
    if architecture == IMPORTED_LOGITS:
        raise CheckpointError("imported logits hold no model that could see an image")
    if architecture in GRAPHS:
        network = GRAPHS[architecture](checkpoint.state)
    else:
        network = _build_trained(checkpoint)
    return Classifier(
        network,
        checkpoint.preprocessing,
        class_order=checkpoint.class_order,
        takes_any_layout=not is_foreign(architecture),
    ).eval()


def is_foreign(architecture: str) -> bool:
    """Whether the network's code is neither ours nor of a library that we know."""
    return architecture in GRAPHS or architecture.startswith(MODULE)


def _build_trained(checkpoint: ModelCheckpoint) -> nn.Module:
    if checkpoint.code is not None and checkpoint.code != code_digest(checkpoint.architecture):
        raise CheckpointError(
            f"the code of {checkpoint.architecture} has changed since this teacher was given: "
            "its logits may be others; run `kedro run --pipelines=teacher_training` again"
        )
    with seeded(0):
        network = build_network(
            checkpoint.architecture,
            shape=checkpoint.preprocessing.shape,
            num_classes=len(checkpoint.class_names),
            arguments=checkpoint.arguments,
        )
    try:
        network.load_state_dict(dict(checkpoint.state))
    except RuntimeError as error:
        raise CheckpointError(
            f"the weights do not fit {checkpoint.architecture} with "
            f"{len(checkpoint.class_names)} classes: {error}"
        ) from error
    return network


def identity_card(checkpoints: Sequence[ModelCheckpoint]) -> dict[str, Any]:
    """What students need of their teacher when its weights are away: JSON-able.

    Args:
        checkpoints: One per member.
    """
    return {
        "fingerprints": [checkpoint.fingerprint for checkpoint in checkpoints],
        "architectures": [checkpoint.architecture for checkpoint in checkpoints],
        "class_names": list(checkpoints[0].class_names),
    }


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


def check_origin(teacher: ModelCheckpoint, **at_hand: str) -> None:
    """Refuse a teacher of another split: it has learnt from examples that are held out here.

    Args:
        teacher: One that says nothing of its origin is let through.
        at_hand: Fingerprints by the names that they have among a checkpoint's facts.

    Raises:
        StaleArtefactError: Naming what differs.
    """
    for what, fingerprint in at_hand.items():
        if teacher.facts.get(what, fingerprint) != fingerprint:
            raise StaleArtefactError(
                f"`teacher.checkpoints` were trained on other {what} than those at hand; "
                "run `kedro run --pipelines=teacher_training`"
            )


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
