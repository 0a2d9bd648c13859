"""Looking at the validation set while a model trains."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from kd_pipeline.models.classifier import Classifier
from kd_pipeline.models.predict import predict_batches


@dataclass(frozen=True)
class Validation:
    """The clean validation images and their labels."""

    pixels_of: Callable[[Tensor], Tensor]
    """Maps positions int64 [batch] to uint8 [batch, channels, height, width]."""
    labels: Tensor
    """int64 [num_examples]"""
    batch_size: int = 1024

    def measure(self, classifier: Classifier, *, device: str) -> dict[str, float]:
        """Mean cross-entropy in nats and accuracy over all examples, in float32."""
        positions = torch.arange(len(self.labels), device=self.labels.device)
        batches = (self.pixels_of(part) for part in torch.split(positions, self.batch_size))
        logits = predict_batches(classifier, batches, device=device, precision="float32")
        labels = self.labels.cpu()
        return {
            "validation/loss": float(F.cross_entropy(logits, labels)),
            "validation/accuracy": float((logits.argmax(dim=1) == labels).double().mean()),
        }


def is_better(metric: str, value: float, best: float) -> bool:
    """Losses fall, accuracies rise."""
    return value < best if metric.endswith("loss") else value > best
