"""What a mixer keeps of standard attention: the paper's four principles, and whether positions count."""

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Principles:
    """Properties of a mixer's map from a layer's hidden states to its output; the paper's section 3.1, but the last.

    The defaults are standard attention's.
    """

    mixes_tokens: bool = True
    """Whether a token's output depends on tokens before it."""
    sequence_dependent: bool = True
    """Whether how it depends on them (the map) differs from one input sequence to another."""
    softmax_form: bool = True
    """Whether the map is a softmax over the visible tokens of scores of pairs, each a query's product with a key."""
    current_queries_and_keys: bool = True
    """Whether what decides on the map comes from the layer's own hidden states."""
    position_dependent: bool = True
    """Whether the order of the tokens before it counts (here by rotary embeddings), beyond which ones they are."""

    @property
    def relaxed(self) -> tuple[str, ...]:
        """Names of the paper's principles that are not kept, in words; without mixing the others mean nothing."""
        if not self.mixes_tokens:
            return ("token mixing",)
        names = {
            "softmax_form": "mathematical form",
            "sequence_dependent": "sequence dependency",
            "current_queries_and_keys": "current queries and keys",
        }
        return tuple(words for name, words in names.items() if not getattr(self, name))

    @property
    def group(self) -> str:
        """What is relaxed, as the heading of a group of mixers."""
        return " and ".join(self.relaxed) or "nothing"


PRINCIPLES = tuple(field.name for field in fields(Principles))
