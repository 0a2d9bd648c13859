"""Kedro datasets for the parquet store of soft targets, and for the folder where it is made."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kedro.io.core import AbstractDataset, DatasetError

from kd_pipeline.datasets.folder import InFolder

if TYPE_CHECKING:  # pyarrow costs a second at start-up, and nothing here validates parameters.
    from kd_pipeline.object_storage.mirror import Mirror
    from kd_pipeline.soft_targets.parts_folder import PartsFolder
    from kd_pipeline.soft_targets.store import SoftTargets


class SoftTargetsDataset(InFolder, AbstractDataset["SoftTargets", "SoftTargets"]):
    """A handle on a folder of parquet parts with a manifest; rows are read when asked for."""

    def load(self) -> "SoftTargets":
        """Open the store: a part that is missing or of another size is refused."""
        from kd_pipeline.soft_targets.store import read_soft_targets

        return read_soft_targets(self._filepath)

    def save(self, data: "SoftTargets") -> None:
        """Check a store that is here already; one from elsewhere replaces what was here.

        Raises:
            StaleArtefactError: If it is not whole: the one that was stays.
        """
        from kd_pipeline.atomic import move_folder
        from kd_pipeline.soft_targets.store import read_soft_targets

        read_soft_targets(data.folder)
        if not (self._filepath.exists() and data.folder.samefile(self._filepath)):
            move_folder(data.folder, self._filepath)

    def _exists(self) -> bool:
        return (self._filepath / "manifest.json").is_file()


class SoftTargetPartsDataset(InFolder, AbstractDataset[None, "PartsFolder"]):
    """Loads a `PartsFolder`, which a node fills part by part; there is nothing to save."""

    mirror: "Mirror | None" = None
    """As `FetchesItself`."""

    def __init__(
        self,
        *,
        filepath: str,
        finished: Mapping[str, str],
        metadata: dict[str, Any] | None = None,
    ) -> None:
        """Make stores in the folder `filepath` and move them to `finished["filepath"]`.

        That is the folder of the dataset of soft targets, best on the same file system. Kedro makes
        a path absolute under this key alone.
        """
        super().__init__(filepath=filepath, metadata=metadata)
        self._finished = Path(finished["filepath"])

    def load(self) -> "PartsFolder":
        """The folder, which need not exist yet."""
        from kd_pipeline.soft_targets.parts_folder import PartsFolder
        from kd_pipeline.soft_targets.shared_parts import SharedParts

        shared = None
        if self.mirror is not None:
            shared = SharedParts(self.mirror, self._filepath, self._finished)
        return PartsFolder(self._filepath, self._finished, shared)

    def save(self, data: None) -> None:  # noqa: ARG002 (the base class names it)
        """Refuse: parts are written while the teacher labels."""
        raise DatasetError("parts of soft targets are written by the labelling itself")

    def _exists(self) -> bool:
        return True

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._filepath), "finished": str(self._finished)}
