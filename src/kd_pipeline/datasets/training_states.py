"""Kedro dataset that hands a node the folder of its interrupted trainings."""

from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from kedro.io.core import AbstractDataset, DatasetError

if TYPE_CHECKING:  # torch costs seconds at start-up, and nothing here validates parameters.
    from kd_pipeline.models.state_folder import StateFolder


class TrainingStatesDataset(AbstractDataset[None, "StateFolder"]):
    """Loads a `StateFolder`, which a node writes to while it trains; there is nothing to save."""

    def __init__(self, *, filepath: str, metadata: dict[str, Any] | None = None) -> None:
        """Keep states below `filepath`."""
        self._filepath = PurePosixPath(filepath)
        self.metadata = metadata

    def load(self) -> "StateFolder":
        """Hand out the folder, which need not exist yet."""
        from kd_pipeline.models.state_folder import StateFolder

        return StateFolder(Path(self._filepath))

    def save(self, data: None) -> None:  # noqa: ARG002 (the base class names it)
        """Refuse: the states are written while training goes on."""
        raise DatasetError("training states are written by the training itself")

    def _exists(self) -> bool:
        return True

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._filepath)}
