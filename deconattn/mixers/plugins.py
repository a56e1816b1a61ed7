"""Third-party variants: Python files that register mixers of their own."""

import hashlib
import importlib.util
import inspect
import io
import sys
import tokenize
from collections.abc import Sequence
from pathlib import Path

from deconattn.errors import UserError
from deconattn.mixers import registry

_DIGEST, _VARIANTS = "__deconattn_digest__", "__deconattn_variants__"
"""What a plugin's module knows: its file as it was when it ran, and what it has registered."""


def load_plugins(files: Sequence[Path]) -> None:
    """Run each file once; what it registers is then known like our own variants.

    A copy of a file that has run, in the folder of another run say, does not run again.

    Raises:
        UserError: a file that is missing or fails, or that registers a name which another file has, with its reason.
    """
    for file in files:
        try:
            _load(file.resolve())
        except Exception as error:
            raise UserError(f"--plugin {file}: {type(error).__name__}: {error}") from error


def _load(path: Path) -> None:
    digest = code_digest(path)
    copies = [module for module in map(vars, list(sys.modules.values())) if module.get(_DIGEST) == digest]
    if copies:
        if not any(module[_VARIANTS].items() <= registry._REGISTRY.items() for module in copies):
            for variant, mixer in copies[0][_VARIANTS].items():
                registry.register(variant)(mixer)
        return
    name = f"deconattn_plugin_{path.stem}"
    if name in sys.modules:  # a namesake in another folder, or the file before it was changed
        name += f"_{digest}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError("not a Python file")
    module = importlib.util.module_from_spec(spec)
    vars(module)[_DIGEST] = digest
    sys.modules[name] = module
    before = dict(registry._REGISTRY)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        registry._REGISTRY.clear()
        registry._REGISTRY.update(before)
        raise
    known = registry._REGISTRY.items()
    vars(module)[_VARIANTS] = {variant: mixer for variant, mixer in known if before.get(variant) is not mixer}


def mixer_digest(name: str) -> str:
    """:func:`code_digest` of the file that registered a variant, as it was then."""
    mixer = registry.mixer_class(name)
    found: str | None = vars(sys.modules.get(mixer.__module__, mixer)).get(_DIGEST)
    return found or code_digest(Path(inspect.getfile(mixer)))


def code_digest(file: Path) -> str:
    """Of a Python file without its comments and empty lines."""
    text = file.read_text(encoding="utf-8")
    lines = text.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    kept = "\n".join(line.rstrip() for line in lines if line.strip())
    return hashlib.sha256(kept.encode()).hexdigest()[:16]
