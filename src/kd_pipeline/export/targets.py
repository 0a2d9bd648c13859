"""The formats of files by name, and whether what they need is installed."""

import importlib.util
import shutil
from collections.abc import Sequence

from kd_pipeline.errors import ExportError
from kd_pipeline.export import c_target, executorch_files, onnx_files
from kd_pipeline.export.target import Target

TARGETS: dict[str, Target] = {
    "onnx": onnx_files.TARGET,
    "executorch": executorch_files.TARGET,
    "c": c_target.TARGET,
}


def check_installed(targets: Sequence[str]) -> None:
    """Refuse targets whose packages or programs are missing.

    Raises:
        ExportError: With how to install them.
    """
    for name in targets:
        target = TARGETS[name]
        if missing := [p for p in target.packages if importlib.util.find_spec(p) is None]:
            raise ExportError(
                f"`model_export.targets` must be formats whose packages are installed, got {name}, "
                f"which needs {', '.join(missing)}: pip install 'kd_pipeline[{target.extra}]'"
            )
        if missing := [p for p in target.programs if shutil.which(p) is None]:
            raise ExportError(
                f"`model_export.targets` must be formats whose programs are installed, got {name}, "
                f"which needs {', '.join(missing)} (packages gcc and binutils of most systems)"
            )
