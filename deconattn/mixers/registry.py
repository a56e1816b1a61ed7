"""Variants by name."""

import sys
from collections.abc import Callable
from typing import TypeVar

from deconattn.mixers.base import Mixer
from deconattn.mixers.contract import contract_faults

MixerClass = TypeVar("MixerClass", bound=type[Mixer])
_REGISTRY: dict[str, type[Mixer]] = {}


def register(name: str) -> Callable[[MixerClass], MixerClass]:
    """Class decorator: make a mixer known as `name`, the variant's name on the command line and in exports.

    A module may register its class again. A class of another module is another variant, whatever it is called: models
    of the one would silently run the other's code.

    Raises:
        ValueError: the name is taken by another class.
        TypeError: the class would decode by, or show the map of, another forward pass than its own.
    """

    def add(mixer: MixerClass) -> MixerClass:
        faults = contract_faults(mixer)
        if faults:
            raise TypeError(f"variant {name!r} ({mixer.__qualname__}): {'; and '.join(faults)}")
        return known_as(name)(mixer)

    return add


def known_as(name: str) -> Callable[[MixerClass], MixerClass]:
    """:func:`register` without a look at the class: what an export has of it."""

    def add(mixer: MixerClass) -> MixerClass:
        known = _REGISTRY.get(name)
        if known is not None and _place(known) != _place(mixer):
            raise ValueError(
                f"variant {name!r} is already registered by {_place(known)}, and {_place(mixer)} is another: give it "
                "another name, or use the two in processes of their own"
            )
        _REGISTRY[name] = mixer
        return mixer

    return add


def _place(mixer: type[Mixer]) -> str:
    """File and name of a class."""
    file = getattr(sys.modules.get(mixer.__module__), "__file__", None)
    return f"{mixer.__qualname__} in {file or mixer.__module__}"


def mixer_class(name: str) -> type[Mixer]:
    """The mixer registered as `name` (KeyError if there is none)."""
    return _REGISTRY[name]


def variant_names() -> tuple[str, ...]:
    """All registered names, in order of registration."""
    return tuple(_REGISTRY)
