"""Optional dependencies (extras), checked before the work that needs them begins."""

import importlib.util

from deconattn.errors import UserError
from deconattn.program import installation

MODULES = {
    "eval": ("lm_eval", "accelerate", "zstandard"),
    "fast": ("gigatoken",),
    "gguf": ("gguf", "accelerate"),
    "plot": ("matplotlib", "markupsafe", "scipy"),
    "remote": ("fsspec",),
    "tensorboard": ("tensorboard",),
}
"""Modules that are imported of each extra."""


def missing(extra: str) -> str | None:
    """Return the first module of an extra that is not installed; imports none of them."""
    return next((module for module in MODULES[extra] if not _is_installed(module)), None)


def require(extra: str, purpose: str) -> None:
    """Require an extra.

    Raises:
        UserError: a module of it is missing; `purpose` begins the message, as in "drawing".
    """
    module = missing(extra)
    if module is not None:
        raise UserError(f"{purpose} needs {module}, which is not installed: {installation(extra)}")


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:
        return False
