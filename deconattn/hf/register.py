"""Make Hugging Face's auto classes know ours, without importing transformers before anybody else does.

`import deconattn` is also what every data worker and every packing process does: the half second of
`import transformers`, and the two of its model classes, are paid only where they are used.
"""

import importlib.abc
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.machinery import ModuleSpec
from types import ModuleType

_AUTO_CONFIG = "transformers.models.auto.configuration_auto"


def register() -> None:
    """Register `deconattn` with the auto classes: at once if they are loaded, else when they are."""
    auto = sys.modules.get(_AUTO_CONFIG)
    if auto is not None and hasattr(auto, "AutoConfig"):
        _register_config(auto)
    elif not any(isinstance(finder, _WhenLoaded) for finder in sys.meta_path):
        sys.meta_path.insert(0, _WhenLoaded())


class _WhenLoaded(importlib.abc.MetaPathFinder):
    """Import hook that registers once AutoConfig's module is loaded; it finds no module itself."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _AUTO_CONFIG:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        spec = next((spec for finder in others if (spec := finder.find_spec(fullname, path, target))), None)
        if spec is None or spec.loader is None:
            return spec
        load = spec.loader.exec_module

        def load_and_register(module: ModuleType) -> None:
            load(module)
            _register_config(module)

        spec.loader.exec_module = load_and_register  # type: ignore[method-assign]
        return spec


def _register_config(auto: ModuleType) -> None:
    from deconattn.hf.configuration_deconattn import DeconAttnConfig

    auto.AutoConfig.register(DeconAttnConfig.model_type, DeconAttnConfig, exist_ok=True)

    # Every way to a model starts at a configuration, so the model class follows with the first of them. Importing
    # it here would be slower, and circular: transformers is still being imported.
    def new(cls: type, *args: object, plugin_code: Mapping[str, str] | None = None, **kwargs: object) -> object:
        _register_model()
        if plugin_code:
            from deconattn.mixers.plugins import check_plugin_code

            check_plugin_code(plugin_code)
        return object.__new__(cls)

    DeconAttnConfig.__new__ = new  # type: ignore[method-assign, assignment]
    plain = DeconAttnConfig.save_pretrained

    def save_pretrained(self: DeconAttnConfig, *arguments: object, **options: object) -> None:
        from deconattn.hf.config_files import with_code  # not before: every import of ours would pay for it

        with_code(plain)(self, *arguments, **options)

    DeconAttnConfig.save_pretrained = save_pretrained


@cache
def _register_model() -> None:
    from transformers import AutoModel, AutoModelForCausalLM

    from deconattn.hf.configuration_deconattn import DeconAttnConfig
    from deconattn.hf.modeling_deconattn import DeconAttnForCausalLM, DeconAttnModel

    AutoModel.register(DeconAttnConfig, DeconAttnModel, exist_ok=True)
    AutoModelForCausalLM.register(DeconAttnConfig, DeconAttnForCausalLM, exist_ok=True)
