"""Variants by name, and the check of a class when it is registered."""

import importlib
import sys
from collections.abc import Callable, Iterable
from functools import cache
from inspect import signature
from pathlib import Path
from typing import TypeVar

from deconattn.layers.head_parts import mixer_names
from deconattn.mixers.base import Mixer
from deconattn.mixers.decoding import Decoding

MixerClass = TypeVar("MixerClass", bound=type[Mixer])
_REGISTRY: dict[str, type[Mixer]] = {}
_FAMILIES: list[Callable[[str], type[Mixer] | None]] = []
_ZOO = "deconattn.mixers.zoo"
_SHIPPED: dict[str, type[Mixer]] = {}
"""Those of the zoo that have been asked for, apart: what a plugin's file registers must not depend on them."""


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
        if mixer.__module__ == _zoo_module(name):
            _SHIPPED[name] = mixer
            return mixer
        if name in zoo_names():
            if _place(mixer_class(name)) == _place(mixer):
                raise ValueError(f"variant {name!r} is found by its name, without its file")
            raise ValueError(_taken(name, mixer_class(name), mixer))
        return known_as(name)(mixer)

    return add


def known_as(name: str) -> Callable[[MixerClass], MixerClass]:
    """Register a class without checking it; an export has this in the place of :func:`register`."""

    def add(mixer: MixerClass) -> MixerClass:
        known = _REGISTRY.get(name)
        if known is not None and _place(known) != _place(mixer):
            raise ValueError(_taken(name, known, mixer))
        _REGISTRY[name] = mixer
        return mixer

    return add


def family(resolve: Callable[[str], type[Mixer] | None]) -> Callable[[str], type[Mixer] | None]:
    """Function decorator: have mixers found by names that say how they are made, which nobody registers."""
    _FAMILIES.append(resolve)
    return resolve


def _taken(name: str, known: type[Mixer], mixer: type[Mixer]) -> str:
    return (
        f"variant {name!r} is already registered by {_place(known)}, and {_place(mixer)} is another: give it another "
        "name, or use the two in processes of their own"
    )


def _place(mixer: type[Mixer]) -> str:
    """Return file and name of a class."""
    file = getattr(sys.modules.get(mixer.__module__), "__file__", None)
    return f"{mixer.__qualname__} in {file or mixer.__module__}"


def mixer_class(name: str) -> type[Mixer]:
    """Return the mixer that `name` is, importing it where it is the zoo's (KeyError if there is none).

    Raises:
        UserError: a name of several mixers by heads that no layer can be made of.
    """
    if name in _REGISTRY or name not in zoo_names():
        return registered_class(name)
    importlib.import_module(_zoo_module(name))
    return _SHIPPED[name]


def relaxed_by(name: str) -> str:
    """Return which of the paper's principles a variant relaxes, in words; empty where nobody has said."""
    if not set(known_names()).issuperset(mixer_names([name])):
        return ""
    principles = mixer_class(name).principles
    return principles.group if principles else ""


def registered_class(name: str) -> type[Mixer]:
    """Return the mixer registered as `name`, or a family's; an export, without a zoo, has this for the above."""
    for resolve in _FAMILIES:
        if (found := resolve(name)) is not None:
            return found
    return _REGISTRY[name]


def known_names() -> tuple[str, ...]:
    """Return all names that a layer may have: those registered and then the zoo's."""
    return variant_names() + zoo_names()


def unknown_names(variants: Iterable[str]) -> list[str]:
    """Return the names, of mixers in layers of these variants, that are not known."""
    unknown = set()
    for variant in variants:
        try:
            mixer_class(variant)
        except KeyError as error:
            unknown.add(str(error.args[0]))
    return sorted(unknown)


def variant_names() -> tuple[str, ...]:
    """Return the names registered, in order of registration: the paper's variants and plugins'."""
    return tuple(_REGISTRY)


@cache
def zoo_names() -> tuple[str, ...]:
    """Return the names of the mixers in the zoo, none of which needs to have been imported."""
    files = sorted((Path(__file__).parent / "zoo").glob("[!_]*.py"))
    return tuple(file.stem.replace("_", "-") for file in files)


def zoo_name(file: Path) -> str | None:
    """Return the name of a mixer in the zoo by its file; None for other files."""
    name = file.stem.replace("_", "-")
    return name if file.resolve().parent == Path(__file__).parent / "zoo" and name in zoo_names() else None


def _zoo_module(name: str) -> str:
    return f"{_ZOO}.{name.replace('-', '_')}"


def contract_faults(mixer: type[Mixer]) -> list[str]:
    """List members that a class inherits from another forward pass than its own, each with its remedy.

    What counts is where each member comes from in the end: from the class, a parent or a mixin.
    """
    home = {name: _home(mixer, name) for name in ("forward", "decoding", "attention_map", "map_blocks")}
    forward, decoding, whole, blocks = home.values()
    faults = [
        f"{name} is no member of a mixer: it belongs on its `decoding` object, a subclass of deconattn.mixers.Decoding"
        for name in vars(Decoding)
        if not name.startswith("_") and hasattr(mixer, name)
    ]
    faults += [
        f"{name} takes (config, work), a Workload"
        for name in ("forward_flops", "activation_bytes")
        if len(signature(getattr(mixer, name)).parameters) != 2
    ]
    if decoding is not Mixer and not issubclass(decoding, forward):
        faults.append(
            f"decoding belongs to the forward of {decoding.__qualname__}: name the class's own, such as `decoding = "
            "Decoding()` (of deconattn.mixers), which mixes the whole sequence again"
        )
    given = blocks if whole is Mixer else whole
    if given is Mixer:
        faults.append("it has neither attention_map nor map_blocks: give one of them")
    elif not issubclass(given, forward):
        faults.append(f"its map belongs to the forward of {given.__qualname__}: give attention_map or map_blocks")
    elif whole is not blocks and Mixer not in (whole, blocks):
        older, newer = ("attention_map", "map_blocks") if issubclass(blocks, whole) else ("map_blocks", "attention_map")
        faults.append(
            f"{older} is {home[older].__qualname__}'s and {newer} is not: give both, or `{older} = Mixer.{older}`, "
            "which follows from the other"
        )
    return faults


def _home(mixer: type[Mixer], name: str) -> type:
    """Return the base class that a member comes from."""
    return next(base for base in mixer.__mro__ if name in vars(base))
