"""The data sets that a node was given, as MLflow lists them: by name, digest and purpose."""

from collections.abc import Mapping
from typing import Any

from kd_pipeline.tracking.operations import DatasetFacts

_MAX_NAME = 100


class InputFacts:
    """Remembers what the images are called, and describes the inputs of a node when asked."""

    def __init__(self) -> None:
        """Before `examples` has passed by, images are just called images."""
        self._source = "images"

    def look_at(self, data: Mapping[str, Any]) -> None:
        """Learn the images' source from a table of examples among inputs or outputs.

        A packaged data set's images are named `<data set>/<number>`; those of a folder are not.
        """
        examples = data.get("examples")
        if examples is not None and len(examples):
            origins = examples["source"].str.partition("/")[0].unique()
            self._source = str(origins[0])[:_MAX_NAME] if len(origins) == 1 else "images"

    def describe(self, inputs: Mapping[str, Any], *, context: str) -> list[DatasetFacts]:
        """Describe the images and splits among a node's inputs.

        The images' fingerprint is one pass over their pixels unless the node has asked for it
        already: call this once a node, not once a model.

        Args:
            inputs: What the node was given, by catalog entry.
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
            name = f"{self._source}-test" if context == "evaluation" else self._source
            facts.append(DatasetFacts(name, images.fingerprint, context, "images", profile))
        if (splits := inputs.get("splits")) is not None:
            from kd_pipeline.data.splits import split_fingerprint

            profile = {role: int(n) for role, n in splits["role"].value_counts().items()}
            digest = split_fingerprint(splits)
            facts.append(DatasetFacts("splits", digest, context, "splits", profile))
        return facts
