"""Whether a third-party variant that is loaded is the one that an export was made with.

`import deconattn` makes this package's classes serve every export, whatever code lies beside it, and these run what a
plugin file registered. Two files that register one name are two models, so an export notes what its own said.
"""

import inspect
from collections.abc import Iterable, Mapping
from pathlib import Path

from deconattn.errors import UserError
from deconattn.mixers import mixer_class, variant_names
from deconattn.mixers.plugins import mixer_digest


def plugin_code(variants: Iterable[str]) -> dict[str, str]:
    """Of those variants that are not this package's: a digest of the file that registers it."""
    return {variant: mixer_digest(variant) for variant in plugin_files(variants)}


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
