"""Layer patterns: which layers are standard attention and which are the variant (paper, section 3.3 and table 11)."""

import difflib
import re
from collections.abc import Collection

from deconattn.errors import UserError
from deconattn.layers.head_parts import head_parts, mixer_names, spelled

STANDARD = "standard"
NAMED = ("uniform", "even", "odd", "top", "middle", "bottom", "25%", "first", "last", "bilateral")


def layer_variants(pattern: str, variant: str, num_layers: int, known: Collection[str]) -> tuple[str, ...]:
    """Return the variant of each layer, first layer first.

    Args:
        pattern: a name of table 11; `S:V` for S standard layers to V variant layers, variants first in
            each period (a depth that is no multiple of the period repeats it and is cut); or an explicit
            list such as `3*fixedseq,standard,2*mlp`, one entry a layer.
        variant: what the layers that are not standard are; an explicit list names its own. Either may be several
            mixers by heads (:mod:`deconattn.layers.head_parts`).
        num_layers: depth of the model.
        known: names of the registered variants.

    Raises:
        UserError: an unknown name (the nearest is suggested) or a list of another length.
    """
    variant = _checked(variant, known)
    if any(mark in pattern for mark in ",*[") or pattern in known:
        return _explicit(pattern, num_layers, known)
    standard = _standard_layers(pattern, num_layers)
    return tuple(STANDARD if layer in standard else variant for layer in range(1, num_layers + 1))


def _checked(variant: str, known: Collection[str]) -> str:
    """Return a variant in its one spelling, once its mixers are known."""
    parts = head_parts(variant)
    for name in mixer_names([variant]):
        check_variant(name, known)
    return spelled(parts) if parts else variant


def check_variant(name: str, known: Collection[str]) -> None:
    if name not in known:
        raise UserError(f"unknown variant {name!r}{nearest(name, known)}: choose one of {', '.join(sorted(known))}")


def _standard_layers(pattern: str, num_layers: int) -> set[int]:
    """Return the numbers, from 1, of the standard layers."""
    layers = range(1, num_layers + 1)
    half, quarter = num_layers // 2, num_layers // 4
    match pattern:
        case "uniform":
            return set()
        case "even":
            return {layer for layer in layers if layer % 2 == 0}
        case "odd":
            return {layer for layer in layers if layer % 2 == 1}
        case "top":
            return set(range(1, half + 1))
        case "middle":  # table 11: 1-6 and 19-24 of 24, the middle half is variant
            return set(range(1, quarter + 1)) | set(range(num_layers - quarter + 1, num_layers + 1))
        case "bottom":
            return set(range(num_layers - half + 1, num_layers + 1))
        case "25%":
            return {layer for layer in layers if layer % 4 == 0}
        case "first":
            return {1}
        case "last":
            return {num_layers}
        case "bilateral":
            return {1, num_layers}
    ratio = re.fullmatch(r"(\d+):(\d+)", pattern)
    if not ratio or int(ratio[1]) + int(ratio[2]) == 0:
        raise UserError(
            f"unknown pattern {pattern!r}{nearest(pattern, NAMED)}: choose one of {', '.join(NAMED)}, "
            "a ratio STANDARD:VARIANT such as 1:3, or a list such as 3*fixedseq,standard"
        )
    num_standard, num_variant = int(ratio[1]), int(ratio[2])
    period = num_standard + num_variant
    return {layer for layer in layers if (layer - 1) % period >= num_variant}


def _explicit(pattern: str, num_layers: int, known: Collection[str]) -> tuple[str, ...]:
    variants: list[str] = []
    for entry in pattern.split(","):
        match = re.fullmatch(r"\s*(?:(\d+)\s*\*\s*)?([^\s*](?:[^*]*[^\s*])?)\s*", entry)
        if not match:
            raise UserError(f"pattern {pattern!r}: cannot read {entry!r}; write NAME or COUNT*NAME, comma-separated")
        variants += [_checked(match[2], known)] * int(match[1] or 1)
    if len(variants) != num_layers:
        raise UserError(
            f"pattern {pattern!r} names {len(variants)} layers but the model has {num_layers}: "
            "change the counts or --num-hidden-layers"
        )
    return tuple(variants)


def nearest(name: str, known: Collection[str]) -> str:
    """Return the end of a message about an unknown name: the known one that it may mean, or nothing."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean {near[0]!r}?)" if near else ""
