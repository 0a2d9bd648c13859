"""Kedro dataset for model checkpoints: one folder per replicate or ensemble member."""

from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from kedro.io.core import AbstractDataset

from kd_pipeline.errors import CheckpointError

if TYPE_CHECKING:  # torch costs seconds at start-up, and nothing here validates parameters.
    from kd_pipeline.models.checkpoint import ModelCheckpoint


class CheckpointsDataset(AbstractDataset["list[ModelCheckpoint]", "list[ModelCheckpoint]"]):
    """A list of `ModelCheckpoint`, at `filepath/<position>/`, replaced as a whole."""

    def __init__(self, *, filepath: str, metadata: dict[str, Any] | None = None) -> None:
        """Keep checkpoints below `filepath`."""
        self._filepath = PurePosixPath(filepath)
        self.metadata = metadata

    def load(self) -> "list[ModelCheckpoint]":
        """Read every checkpoint, in order, each checked against its fingerprint."""
        from kd_pipeline.models.checkpoint import read_checkpoint

        folders = sorted(self._folders(), key=lambda folder: int(folder.name))
        if [int(folder.name) for folder in folders] != list(range(len(folders))) or not folders:
            raise CheckpointError(
                f"no complete set of checkpoints in {self._filepath}: found "
                f"{[folder.name for folder in folders]}; run the stage that makes them"
            )
        return [read_checkpoint(folder) for folder in folders]

    def save(self, data: "list[ModelCheckpoint]") -> None:
        """Write every checkpoint; the folder appears whole or not at all."""
        from kd_pipeline.atomic import replace_folder
        from kd_pipeline.models.checkpoint import write_checkpoint

        with replace_folder(Path(self._filepath)) as temporary:
            for position, checkpoint in enumerate(data):
                write_checkpoint(checkpoint, temporary / str(position))

    def _folders(self) -> list[Path]:
        folder = Path(self._filepath)
        return [p for p in folder.iterdir() if p.name.isdigit()] if folder.is_dir() else []

    def _exists(self) -> bool:
        return bool(self._folders())

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._filepath)}
