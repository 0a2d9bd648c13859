"""Kedro dataset for model checkpoints: one folder per replicate or ensemble member."""

from typing import TYPE_CHECKING

from kedro.io.core import AbstractDataset

from kd_pipeline.datasets.folder import InFolder

if TYPE_CHECKING:  # torch costs seconds at start-up, and nothing here validates parameters.
    from kd_pipeline.models.checkpoint import ModelCheckpoint


class CheckpointsDataset(
    InFolder, AbstractDataset["list[ModelCheckpoint]", "list[ModelCheckpoint]"]
):
    """A list of `ModelCheckpoint`, at `filepath/<position>/`, replaced as a whole.

    An empty folder is an empty list: a teacher whose logits were computed elsewhere.
    """

    def load(self) -> "list[ModelCheckpoint]":
        """Read every checkpoint, in order, each checked against its fingerprint."""
        from kd_pipeline.models.checkpoint import read_checkpoints

        return read_checkpoints(self._filepath)

    def save(self, data: "list[ModelCheckpoint]") -> None:
        """Write every checkpoint; the folder appears whole or not at all."""
        from kd_pipeline.atomic import replace_folder
        from kd_pipeline.models.checkpoint import write_checkpoint

        with replace_folder(self._filepath) as temporary:
            for position, checkpoint in enumerate(data):
                write_checkpoint(checkpoint, temporary / str(position))
