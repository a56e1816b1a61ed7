"""FixedSeqQK: queries and keys from a stream that starts at the embeddings of one fixed text (paper, section 3.2)."""

from deconattn.mixers.fixed_map import FixedMap
from deconattn.mixers.registry import register


@register("fixedseq")
class FixedSeq(FixedMap):
    """Standard attention's map of a fixed stream that starts at the embeddings of one fixed natural text."""

    fixed_stream = "text"
