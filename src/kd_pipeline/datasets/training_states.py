"""Kedro dataset that hands a node the folder of its interrupted trainings."""

from typing import TYPE_CHECKING

from kedro.io.core import AbstractDataset, DatasetError

from kd_pipeline.datasets.folder import InFolder

if TYPE_CHECKING:  # torch costs seconds at start-up, and nothing here validates parameters.
    from kd_pipeline.models.state_folder import StateFolder
    from kd_pipeline.object_storage.mirror import Mirror


class TrainingStatesDataset(InFolder, AbstractDataset[None, "StateFolder"]):
    """Loads a `StateFolder`, which a node writes to while it trains; there is nothing to save."""

    mirror: "Mirror | None" = None
    """As `FetchesItself`."""

    def load(self) -> "StateFolder":
        """The folder, which need not exist yet."""
        from kd_pipeline.models.state_folder import StateFolder

        return StateFolder(self._filepath, self.mirror)

    def save(self, data: None) -> None:  # noqa: ARG002 (the base class names it)
        """Refuse: the states are written while training goes on."""
        raise DatasetError("training states are written by the training itself")

    def _exists(self) -> bool:
        return True
