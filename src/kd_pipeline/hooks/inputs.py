"""The data sets that a node was given, as MLflow lists them: by name, digest and purpose."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kd_pipeline.tracking.operations import DatasetFacts

if TYPE_CHECKING:
    import pandas as pd

_MAX_NAME = 100


def describe_inputs(inputs: Mapping[str, Any], *, context: str) -> list[DatasetFacts]:
    """Describe the images and splits among a node's inputs.

    The images' fingerprint is one pass over their pixels unless the node has used it already:
    call this once a node, not once a model.

    Args:
        inputs: What the node was given, by catalog entry; `examples` gives the images' name.
        context: `training` or `evaluation`.
    """
    facts = []
    if (images := inputs.get("images")) is not None:
        profile = {
            "num_images": len(images.example_ids),
            "shape": list(images.pixels.shape[1:]),
            "num_classes": len(images.class_names),
        }
        # MLflow keeps one purpose per run and data set: the test images need their own name.
        suffix = "-test" if context == "evaluation" else ""
        name = _source(inputs.get("examples")) + suffix
        facts.append(DatasetFacts(name, images.fingerprint, context, "images", profile))
    if (splits := inputs.get("splits")) is not None:
        from kd_pipeline.data.splits import split_fingerprint

        profile = {role: int(n) for role, n in splits["role"].value_counts().items()}
        digest = split_fingerprint(splits)
        facts.append(DatasetFacts("splits", digest, context, "splits", profile))
    return facts


def fingerprint_of_test_set(inputs: Mapping[str, Any]) -> str:
    """The fingerprint of the test set among the inputs of the node that read it."""
    from kd_pipeline.data.dataset import LabelledImages
    from kd_pipeline.evaluation.test_set import describe_test_set

    data = LabelledImages(*(inputs[name] for name in ("images", "examples", "splits")))
    return str(describe_test_set(data)["test_fingerprint"])


def _source(examples: "pd.DataFrame | None") -> str:
    """The images' source: those of a packaged data set are named `<data set>/<number>`."""
    if examples is None or examples.empty:
        return "images"
    origins = examples["source"].str.partition("/")[0].unique()
    return str(origins[0])[:_MAX_NAME] if len(origins) == 1 else "images"
