"""What is saved through this package's classes carries its code, as an export does.

A Trainer's checkpoint, or a model that was changed and saved again, then loads where the package is not installed.
"""

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

from deconattn.errors import UserError
from deconattn.hf.config_files import code_fields
from deconattn.hf.plugin_code import plugin_files
from deconattn.hf.source import FILE_NAME, modeling_source
from deconattn.mixers import variant_names


def with_code(save_pretrained: Callable[..., None]) -> Callable[..., None]:
    """A configuration's `save_pretrained`, which a model's calls, with the modelling file written beside.

    Raises:
        UserError: a layer's variant is not registered, so that its code is not known.
    """

    @wraps(save_pretrained)
    def save(self: Any, save_directory: str | Path, *arguments: Any, **options: Any) -> None:
        unknown = sorted(set(self.layer_variants) - set(variant_names()))
        if unknown:
            raise UserError(f"variant {unknown[0]!r} is not registered: load the plugin file that registers it first")
        files = sorted(set(plugin_files(self.layer_variants).values()))
        source = modeling_source(self.layer_variants, files)
        for name, value in code_fields(self.layer_variants).items():
            setattr(self, name, value)
        save_pretrained(self, save_directory, *arguments, **options)
        (Path(save_directory) / FILE_NAME).write_text(source, encoding="utf-8")

    return save
