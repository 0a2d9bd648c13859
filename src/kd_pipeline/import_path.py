"""What users name by import path, `package.module:name`: their own networks and losses."""

import hashlib
import importlib
import sys
from pathlib import Path
from typing import Any

from kd_pipeline.errors import ParameterError

MODULE = "module:"
"""Prefix of a name in YAML that is an import path."""
_FAILURES = (ImportError, AttributeError, ValueError, TypeError)


def import_named(import_path: str, *, kind: str) -> Any:
    """Import what a path names. Importing runs the module, whichever it is.

    Args:
        import_path: `package.module:name`.
        kind: What is to be found there, as the error calls it.

    Raises:
        ParameterError: Naming `import_path`, if there is no such module or no such name in it.
    """
    module, _, name = import_path.partition(":")
    if any(part.startswith("__") for part in module.split(".")):
        # Importing the `__main__` of a package runs it.
        raise ParameterError("import_path", "name a module without leading __", import_path)
    try:
        return getattr(importlib.import_module(module), name)
    except _FAILURES as error:
        rule = f"name a {kind.lower()} as `package.module:{kind}` ({error})"
        raise ParameterError("import_path", rule, import_path) from error


def file_digest(found: Any) -> str | None:
    """16 hex digits over the file in which a class or function is written; None without a file."""
    file = getattr(sys.modules.get(found.__module__), "__file__", None)
    if file is None or not Path(file).is_file():
        return None
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16]
