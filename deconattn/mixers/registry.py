"""Variants by name."""

from collections.abc import Callable
from typing import TypeVar

from deconattn.mixers.base import Mixer

MixerClass = TypeVar("MixerClass", bound=type[Mixer])
_REGISTRY: dict[str, type[Mixer]] = {}


def register(name: str) -> Callable[[MixerClass], MixerClass]:
    """Class decorator: make a mixer known as `name`, the variant's name on the command line and in exports.

    Raises:
        ValueError: the name is taken by another class.
    """

    def add(mixer: MixerClass) -> MixerClass:
        known = _REGISTRY.get(name)
        if known is not None and known.__qualname__ != mixer.__qualname__:
            raise ValueError(f"variant {name!r} is already registered by {known.__module__}.{known.__qualname__}")
        _REGISTRY[name] = mixer
        return mixer

    return add


def mixer_class(name: str) -> type[Mixer]:
    """The mixer registered as `name` (KeyError if there is none)."""
    return _REGISTRY[name]


def variant_names() -> tuple[str, ...]:
    """All registered names, in order of registration."""
    return tuple(_REGISTRY)
