"""Models before their training: from scratch, or from pretrained weights."""

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np

from kd_pipeline.data.dataset import LabelledImages
from kd_pipeline.models.checkpoint import build_untrained, tensors_digest
from kd_pipeline.models.classifier import Classifier
from kd_pipeline.models.preprocessing import Preprocessing
from kd_pipeline.models.pretrained import (
    PretrainedWeights,
    adopt_weights,
    freeze_all_but_last,
    load_weights,
)
from kd_pipeline.models.settings import Model, Pretrained
from kd_pipeline.training.rows import measure

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class InitialModel:
    """A function of a seed: what no pretrained weights are there for depends on it."""

    model: Model
    preprocessing: Preprocessing
    class_names: tuple[str, ...]
    pretrained: Pretrained | None
    weights: PretrainedWeights | None

    def __call__(self, seed: int) -> Classifier:
        """Build the classifier of a seed; frozen layers take no gradient.

        Raises:
            ParameterError: If an argument is unknown, with a name within the block.
            CheckpointError: If pretrained weights do not fit but for the head.
        """
        num_classes = len(self.class_names)
        built = build_untrained(self.model, self.preprocessing, num_classes=num_classes, seed=seed)
        if self.pretrained is not None and self.weights is not None:
            same = self.weights.class_names == self.class_names
            adopt_weights(built.network, self.weights.state, same_classes=same)
            if self.pretrained.trainable_layers is not None:
                freeze_all_but_last(built.network, self.pretrained.trainable_layers)
        return built

    @property
    def provenance(self) -> dict[str, Any]:
        """What models that are compared must have in common: empty where they are from scratch."""
        if self.pretrained is None or self.weights is None:
            return {}
        digest = tensors_digest(self.weights.state)
        return {"pretrained": {**self.pretrained.model_dump(mode="json"), "digest": digest}}


def initial_model(
    data: LabelledImages, model: Model, pretrained: Pretrained | None, example_ids: np.ndarray
) -> InitialModel:
    """Read the pretrained weights, if any.

    Images are normalised as the weights declare, else by the statistics of these examples.

    Raises:
        ParameterError: If there are no such weights, with a name that begins with `pretrained`.
        CheckpointError: If they cannot be read.
    """
    preprocessing, names = measure(data, example_ids), data.images.class_names
    if pretrained is None:
        return InitialModel(model, preprocessing, names, None, None)
    weights = load_weights(model.name, pretrained)
    if weights.normalisation is not None:
        mean, std = weights.normalisation
        preprocessing = Preprocessing((len(mean), *preprocessing.shape[1:]), mean, std)
    head = "is kept" if weights.class_names == names else "starts afresh"
    logger.info("pretrained weights of %s: the head %s", model.name, head)
    return InitialModel(model, preprocessing, names, pretrained, weights)
