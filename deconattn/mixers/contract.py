"""Whether what a class has inherited belongs together, told when it is registered."""

from inspect import signature

from deconattn.mixers.base import Mixer
from deconattn.mixers.decoding import Decoding


def contract_faults(mixer: type[Mixer]) -> list[str]:
    """What a class has inherited of another forward pass than its own, each with its remedy.

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
    """The class of the inheritance that a member comes from."""
    return next(base for base in mixer.__mro__ if name in vars(base))
