"""Kedro datasets for the parquet store of soft targets, and for the place where it is made."""

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from kedro.io.core import AbstractDataset, DatasetError

if TYPE_CHECKING:  # pyarrow costs a second at start-up, and nothing here validates parameters.
    from kd_pipeline.soft_targets.parts_folder import PartsFolder
    from kd_pipeline.soft_targets.store import SoftTargets


class SoftTargetsDataset(AbstractDataset["SoftTargets", "SoftTargets"]):
    """A handle on a folder of parquet parts with a manifest; rows are read when asked for."""

    def __init__(self, *, filepath: str, metadata: dict[str, Any] | None = None) -> None:
        """Keep the store in the folder `filepath`."""
        self._filepath = PurePosixPath(filepath)
        self.metadata = metadata

    def load(self) -> "SoftTargets":
        """Open the store: a part that is missing or of another size is refused."""
        from kd_pipeline.soft_targets.store import read_soft_targets

        return read_soft_targets(Path(self._filepath))

    def save(self, data: "SoftTargets") -> None:
        """Move a finished store here, in place of the one that was; its folder is gone then.

        Raises:
            StaleArtefactError: If it is not whole: the one that was stays.
        """
        from kd_pipeline.atomic import move_folder
        from kd_pipeline.soft_targets.store import read_soft_targets

        target = Path(self._filepath)
        if not (target.exists() and data.folder.samefile(target)):
            read_soft_targets(data.folder)
            move_folder(data.folder, target)
        if data.lock is not None:
            data.lock.release()

    def _exists(self) -> bool:
        return Path(self._filepath, "manifest.json").is_file()

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._filepath)}


class SoftTargetPartsDataset(AbstractDataset[None, "PartsFolder"]):
    """Loads a `PartsFolder`, which a node fills part by part; there is nothing to save."""

    def __init__(
        self,
        *,
        filepath: str,
        finished: Mapping[str, str],
        metadata: dict[str, Any] | None = None,
    ) -> None:
        """Make stores in the folder `filepath`.

        Args:
            filepath: On the same file system as `finished`, so that a store can be moved there.
            finished: `filepath` of the dataset of soft targets, whose store lends intact parts.
                Under this key Kedro makes it absolute; a path of another name would be looked
                for in the folder where the run was started.
            metadata: For Kedro's plugins.
        """
        self._filepath = PurePosixPath(filepath)
        self._finished = PurePosixPath(finished["filepath"])
        self.metadata = metadata

    def load(self) -> "PartsFolder":
        """Hand out the folder, which need not exist yet."""
        from kd_pipeline.soft_targets.parts_folder import PartsFolder

        return PartsFolder(Path(self._filepath), Path(self._finished))

    def save(self, data: None) -> None:  # noqa: ARG002 (the base class names it)
        """Refuse: parts are written while the teacher labels."""
        raise DatasetError("parts of soft targets are written by the labelling itself")

    def _exists(self) -> bool:
        return True

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._filepath), "finished": str(self._finished)}
