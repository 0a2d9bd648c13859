"""Kedro's datasets of single files, each with the checksum of its file beside it.

`examples.parquet` has `.examples.parquet.crc32`. A file that is not as it was written is refused
before it is parsed. One without a checksum, which another program made, is read as it is.
"""

from pathlib import PurePosixPath
from typing import IO, Any, Protocol

from kedro.io import DatasetError
from kedro_datasets.json import JSONDataset
from kedro_datasets.pandas import ParquetDataset

from kd_pipeline.checksums import file_checksum
from kd_pipeline.errors import DataError

MADE_BY = "made_by"
"""The pipeline to run again, among a catalog entry's metadata."""


class _Files(Protocol):
    def open(self, path: str, mode: str) -> IO[bytes]: ...

    def exists(self, path: str) -> bool: ...


class Checked:
    """First base of a dataset that keeps one file; not itself a dataset, as `InFolder`."""

    _filepath: PurePosixPath
    _fs: _Files
    metadata: dict[str, Any] | None

    def save(self, data: Any) -> None:
        """Write the file, then its checksum; a file that is written by half is refused later."""
        self._write_checksum("unfinished")
        super().save(data)  # type: ignore[misc]
        self._write_checksum(self._checksum())

    def load(self) -> Any:
        """Read the file if it is as it was written.

        Raises:
            DataError: If it is missing, damaged or not readable.
        """
        made_by = (self.metadata or {}).get(MADE_BY)
        command = f"`kedro run --pipelines={made_by}`" if made_by else "the stage that makes it"
        if not self._fs.exists(str(self._filepath)):
            raise DataError(f"{self._filepath} is missing: run {command} to make it")
        again = f"delete it and run {command} again"
        if self._fs.exists(self._beside):
            with self._fs.open(self._beside, "rb") as file:
                if file.read() != self._checksum().encode():
                    raise DataError(
                        f"{self._filepath} is not as it was written (its checksum differs): {again}"
                    )
        try:
            return super().load()  # type: ignore[misc]
        except DatasetError as error:
            raise DataError(f"{self._filepath} cannot be read: {again}") from error

    @property
    def _beside(self) -> str:
        return str(self._filepath.with_name(f".{self._filepath.name}.crc32"))

    def _checksum(self) -> str:
        with self._fs.open(str(self._filepath), "rb") as file:
            return file_checksum(file)

    def _write_checksum(self, checksum: str) -> None:
        with self._fs.open(self._beside, "wb") as file:
            file.write(checksum.encode())


class CheckedParquetDataset(Checked, ParquetDataset):  # type: ignore[misc]
    """`pandas.ParquetDataset` with a checksum."""


class CheckedJSONDataset(Checked, JSONDataset):  # type: ignore[misc]
    """`json.JSONDataset` with a checksum."""
