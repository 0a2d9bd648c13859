"""The model card of an exported student, from the facts of its run (Mitchell et al. 2019)."""

from collections.abc import Mapping
from typing import Any

_Json = Mapping[str, Any]


def model_card(card: _Json) -> str:
    """Markdown of card.json."""
    height, width = card["input_shape"][1:]
    channels = {1: "grey", 3: "RGB"}.get(
        card["input_shape"][0], f"{card['input_shape'][0]}-channel"
    )
    arguments = ", ".join(f"{k} {v}" for k, v in card["arguments"].items())
    lines = [
        f"# {card['model']}",
        "",
        f"An image classifier of {len(card['class_names'])} classes: {_names(card)}.",
        "",
        "## Model",
        "",
        f"- Architecture: {card['architecture']}{f' ({arguments})' if arguments else ''}, "
        f"{card['parameters']:,} parameters, {card['macs']:,} multiply-accumulates per image",
        f"- Input: uint8 {channels} pixels of {height} x {width}, channels first; scaling and "
        "normalisation are in the file",
        f"- Output: {len(card['class_names'])} logits; softmax gives probabilities",
        f"- Learnt from: {_learnt_from(card)}",
        *_training(card),
        f"- Checkpoint {card['checkpoint']}, replicate {card['replicate']}{_validation(card)}",
        "",
        "## Files",
        "",
        *_files(card),
        "",
        "## Evaluation",
        "",
        f"All {card['num_test_examples']:,} test images (fingerprint {card['test_fingerprint']}). "
        f"{_chosen(card)}Int8 ranges come from "
        f"{card['num_calibration_rows']:,} transfer images at most. The report of the run compares "
        "this student with one trained on labels alone, over several seeds.",
        "",
        "## Limits",
        "",
        "It was measured on images of the kind that it was trained on, and has no other class: of "
        "an image of anything else it names one of these. Accuracy on other cameras, crops or "
        "populations is not known. A teacher's mistakes and biases pass to its student.",
        "",
        "## Provenance",
        "",
        f"- Images {card['images']}",
        f"- Splits {card['splits']}",
        f"- Teacher {', '.join(card['teacher']) or 'none'}",
        f"- Made by {card['made_by']}",
    ]
    return "\n".join(lines) + "\n"


def _names(card: _Json) -> str:
    names = card["class_names"]
    shown = ", ".join(names[:20])
    return shown if len(names) <= 20 else f"{shown} and {len(names) - 20} others"


def _chosen(card: _Json) -> str:
    if card["splits"] is None:
        return "It has no record of its training data: that they hold none of these is not known. "
    return "No training used them, nor the choice of the replicate. "


def _validation(card: _Json) -> str:
    accuracy = card["validation_accuracy"]
    if accuracy is None:
        return ""
    return f", the best of its kind on validation ({100 * accuracy:.2f} %)"


def _learnt_from(card: _Json) -> str:
    parameters = card["training"].get("parameters")
    if parameters is None:
        return "not on record"
    if not card["teacher"]:
        return "labels"
    loss, weight = parameters.get("soft_loss"), parameters.get("soft_weight")
    name = loss["name"] if isinstance(loss, dict) else loss
    if name == "pseudo_label":
        return f"a teacher's decisions as labels (soft weight {weight})"
    temperature = parameters.get("temperature")
    return f"a teacher's soft targets ({name}, temperature {temperature}, soft weight {weight})"


def _training(card: _Json) -> list[str]:
    training = card["training"]
    if "epochs" not in training:
        return []
    return [
        f"- Training: {training['epochs']} epochs, {training['steps']:,} steps, "
        f"{training['num_training_rows']:,} images, seed {training['seed']}"
    ]


def _files(card: _Json) -> list[str]:
    head = "| file | bytes | RAM bytes | accuracy % | NLL | ECE | same class as checkpoint % |"
    rule = "|---|---:|---:|---:|---:|---:|---:|"
    reference = card["checkpoint_on_test"]
    rows = [
        f"| checkpoint in float32 | - | - | {100 * reference['accuracy']:.2f} | "
        f"{reference['nll']:.3f} | {reference['ece']:.3f} | - |"
    ]
    for file in card["files"]:
        taken = file.get("flash_bytes", file["size_bytes"])
        ram = f"{file['ram_bytes']:,}" if "ram_bytes" in file else "-"
        rows.append(
            f"| {file['file']} | {taken:,} | {ram} | {100 * file['accuracy']:.2f} | "
            f"{file['nll']:.3f} | {file['ece']:.3f} | {100 * file['agreement']:.2f} |"
        )
    return [head, rule, *rows]
