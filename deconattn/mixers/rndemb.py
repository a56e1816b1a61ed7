"""RndEmbQK: queries and keys from a stream that starts at constant random embeddings (paper, section 3.2)."""

from deconattn.mixers.fixed_map import FixedMap
from deconattn.mixers.registry import register


@register("rndemb")
class RndEmb(FixedMap):
    """Standard attention's map of a fixed stream that starts at constant random embeddings."""

    fixed_stream = "random"
