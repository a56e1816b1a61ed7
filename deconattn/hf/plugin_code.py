"""Whether a third-party variant that is loaded is the one that an export was made with.

`import deconattn` makes this package's classes serve every export, whatever code lies beside it, and these run what a
plugin file registered. Two files that register one name are two models, so an export notes what its own said.
"""

import hashlib
import inspect
import io
import tokenize
from collections.abc import Iterable, Mapping
from pathlib import Path

from deconattn.errors import UserError
from deconattn.mixers import mixer_class, variant_names


def plugin_code(variants: Iterable[str]) -> dict[str, str]:
    """Of those variants that are not this package's: a digest of the file that registers it."""
    return {variant: _digest(file) for variant, file in plugin_files(variants).items()}


def plugin_files(variants: Iterable[str]) -> dict[str, Path]:
    """Of those variants that are not this package's: the file that registers it."""
    files = {variant: Path(inspect.getfile(mixer_class(variant))).resolve() for variant in sorted(variants)}
    ours = Path(__file__).resolve().parents[1]
    return {variant: file for variant, file in files.items() if ours not in file.parents}


def check_plugin_code(exported: Mapping[str, str]) -> None:
    """Raises UserError if a variant of `exported` (:func:`plugin_code`) is loaded from a file with other code."""
    for variant, digest in exported.items():
        if variant in variant_names() and plugin_code([variant]).get(variant) != digest:
            raise UserError(
                f"variant {variant!r} is loaded from {inspect.getfile(mixer_class(variant))}, which is not the code "
                "that this model was exported with: load that file, or the model where deconattn is not imported"
            )


def _digest(file: Path) -> str:
    """Of a Python file without its comments and empty lines."""
    text = file.read_text(encoding="utf-8")
    lines = text.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    kept = "\n".join(line.rstrip() for line in lines if line.strip())
    return hashlib.sha256(kept.encode()).hexdigest()[:16]
