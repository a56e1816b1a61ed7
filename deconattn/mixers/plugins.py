"""Third-party variants: Python files that register mixers of their own."""

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

from deconattn.errors import UserError


def load_plugins(files: Sequence[Path]) -> None:
    """Run each file once; what it registers is then known like our own variants.

    Raises:
        UserError: a file that is missing or fails, with its reason.
    """
    for file in files:
        name = f"deconattn_plugin_{file.stem}"
        loaded = sys.modules.get(name)
        if loaded is not None and Path(str(loaded.__file__)) == file.resolve():
            continue
        spec = importlib.util.spec_from_file_location(name, file.resolve())
        if spec is None or spec.loader is None:
            raise UserError(f"--plugin {file}: not a Python file")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            del sys.modules[name]
            raise UserError(f"--plugin {file}: {type(error).__name__}: {error}") from error
