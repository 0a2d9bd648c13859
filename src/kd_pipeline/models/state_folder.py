"""Training states on disk, in safetensors and JSON."""

import json
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from kd_pipeline.atomic import replace_folder
from kd_pipeline.checksums import checked_dumps, checked_loads, file_checksum
from kd_pipeline.object_storage.mirror import Mirror
from kd_pipeline.provenance import package_digest

_TENSOR = "__tensor__"
_PAIRS = "__pairs__"
_CHECKSUM = "__crc32__"
_COMPLETE = "complete.json"

logger = logging.getLogger(__name__)


class StateFolder:
    """States by key: nested dicts and lists of tensors and JSON-able values."""

    def __init__(self, folder: Path, mirror: Mirror | None = None) -> None:
        """Keep states below `folder`, which need not exist, and on object storage by its mirror."""
        self.folder = folder
        self._mirror = mirror

    @property
    def is_local(self) -> bool:
        """Whether states are kept on this disk alone."""
        return self._mirror is None

    def save(self, key: str, state: Mapping[str, Any]) -> None:
        """Replace the state under a key, whole or not at all."""
        tensors: dict[str, Tensor] = {}
        plain = _detach(state, tensors)
        with replace_folder(self.folder / key) as temporary:
            save_file(tensors, temporary / "state.safetensors")
            plain[_CHECKSUM] = file_checksum(temporary / "state.safetensors")
            # Histories hold NaN where nothing was measured.
            (temporary / "state.json").write_text(checked_dumps(plain, allow_nan=True))
        if self._mirror is not None:
            self._mirror.push(self.folder / key)

    def load(self, key: str) -> dict[str, Any] | None:
        """The state under a key; None where there is none.

        A damaged one is warned of and counts as none: training from the start loses only time. So
        does one that `keep_used` has kept and other code than this package's of now has made.
        """
        folder = self.folder / key
        if self._mirror is not None and not folder.is_dir():
            self._mirror.pull(folder, strict=False)
        if not folder.is_dir() or not self._is_of_this_code(folder):
            return None
        os.utime(folder)  # For `keep_used`, also where another process calls it.
        try:
            plain = checked_loads((folder / "state.json").read_bytes())
            if file_checksum(folder / "state.safetensors") != plain.pop(_CHECKSUM):
                raise ValueError("the checksum of state.safetensors differs")
            state: dict[str, Any] = _attach(plain, load_file(folder / "state.safetensors"))
        except (OSError, ValueError, KeyError, TypeError) as error:
            logger.warning(
                "the interrupted training in %s is damaged (%s): it starts anew", folder, error
            )
            return None
        return state

    def keep_used(self, since: float) -> None:
        """Keep what was read or written since a moment, as of finished trainings, and nothing else.

        On object storage nothing is kept.

        Args:
            since: In seconds of `time.time`.
        """
        if self._mirror is not None:
            self.clear()
            return
        for folder in (path for path in self.folder.glob("*") if path.is_dir()):
            if folder.stat().st_mtime < since:
                shutil.rmtree(folder, ignore_errors=True)
            else:
                (folder / _COMPLETE).write_text(json.dumps({"code": package_digest()}))

    @staticmethod
    def _is_of_this_code(folder: Path) -> bool:
        """Whether a training was interrupted, or this very code has finished it."""
        file = folder / _COMPLETE
        try:
            return not file.exists() or json.loads(file.read_text())["code"] == package_digest()
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def clear(self) -> None:
        """Remove every state."""
        shutil.rmtree(self.folder, ignore_errors=True)
        if self._mirror is not None:
            self._mirror.clear(self.folder)


def check_storable(state: Mapping[str, Any]) -> None:
    """Refuse what `StateFolder.save` cannot write.

    Raises:
        TypeError: If a value is neither a tensor nor JSON-able.
    """
    checked_dumps(_detach(state, {}), allow_nan=True)


def _detach(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        name = str(len(tensors))
        # A copy: safetensors refuses tensors that share memory.
        tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {_TENSOR: name}
    if isinstance(value, Mapping):
        # As pairs: JSON would turn the optimiser's integer keys into strings.
        return {_PAIRS: [[key, _detach(item, tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return [_detach(item, tensors) for item in value]
    return value


def _attach(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_attach(item, tensors) for item in value]
    if isinstance(value, dict):
        if _TENSOR in value:
            return tensors[value[_TENSOR]]
        return {key: _attach(item, tensors) for key, item in value[_PAIRS]}
    return value
