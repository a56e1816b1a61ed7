"""Exchange of a mixer under context parallelism: how a layer reads the tokens that other ranks have, as one object."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from deconattn.layers.config import ModelConfig
from deconattn.layers.rotary import Rotary
from deconattn.layers.shards import largest_part
from deconattn.mixers.cache import LayerCache
from deconattn.mixers.context import MixerContext
from deconattn.mixers.costs import Workload
from deconattn.ops.documents import Documents
from deconattn.ops.reference import per_query_head

if TYPE_CHECKING:
    from deconattn.mixers.base import Mixer

AnyMixer = TypeVar("AnyMixer", bound="Mixer")


class ContextRanks(Protocol):
    """Ranks that share each sequence, in the order of their equal parts. What they exchange has gradients.

    Attributes:
        rank, size: which of how many this one is.
    """

    rank: int
    size: int

    def whole(self, part: Tensor, dim: int = 1) -> Tensor:
        """Gather the parts of all ranks along a dimension."""

    def part(self, whole: Tensor, dim: int = 1) -> Tensor:
        """Return this rank's part of what all have; no exchange."""

    def to_heads(self, parts: Tensor) -> Tensor:
        """Exchange tokens for heads: [R, heads, L / size, x] -> this rank's [R, heads / size, L, x]."""

    def to_tokens(self, heads: Tensor) -> Tensor:
        """Undo :meth:`to_heads`."""


@dataclass(frozen=True, eq=False)
class SharedContext(MixerContext):
    """Context of this rank's part of rows that several ranks share; offsets of its documents are unknown.

    Attributes:
        ranks: those that share them.
        whole_documents: boundaries in the whole rows, or None where a row is one document.
        whole_rotary: returns cosines and sines of the whole rows' positions; few mixers ask.
    """

    ranks: ContextRanks | None = None
    whole_documents: Documents | None = None
    whole_rotary: Callable[[], Rotary] | None = None

    def to(self, device: torch.device) -> MixerContext:
        raise NotImplementedError("a layer that shares its rows with other ranks is on their devices")

    def rows(self, count: int) -> "SharedContext":
        documents = None if self.documents is None else self.documents.rows(count)
        whole = None if self.whole_documents is None else self.whole_documents.rows(count)
        make = self.whole_rotary
        assert make is not None
        return SharedContext(
            self.rotary.rows(count),
            documents,
            {},
            ranks=self.ranks,
            whole_documents=whole,
            whole_rotary=lambda: make().rows(count),
        )

    def whole(self) -> MixerContext:
        """Return the context of the whole rows."""
        assert self.whole_rotary is not None
        return MixerContext(
            self.whole_rotary(), self.whole_documents, self.fixed_rows, self.output_rows, fixed=self.fixed
        )


class ContextExchange(Generic[AnyMixer]):
    """Exchange for any causal mixer: the whole rows are gathered and mixed on every rank, which keeps its part.

    A subclass exchanges and computes less. It has no state.
    """

    def mix(self, mixer: AnyMixer, hidden: Tensor, static: Tensor | None, context: SharedContext) -> Tensor:
        """Compute this rank's part of what the mixer's `forward` makes of whole rows.

        Args:
            hidden, static: [R, L / cp_size, d], this rank's part of the rows.

        Returns:
            [R, L / cp_size, d], or fewer rows as `forward` may return.
        """
        ranks = _ranks(context)
        whole = ranks.whole(hidden)
        if static is not None and mixer.needs_static_embeddings:
            static = ranks.whole(static)
        return ranks.part(type(mixer).forward(mixer, whole, static, context.whole()))

    def held(self, fixed: tuple[Tensor, ...], context: SharedContext) -> tuple[Tensor, ...]:
        """Return what `context.fixed` is to be, of this rank's part of it: tensors [n, L / cp_size, x]."""
        return tuple(_ranks(context).whole(part) for part in fixed)

    def sent_elements(self, mixer: type[AnyMixer], config: ModelConfig, work: Workload, cp_size: int) -> int:
        """Return the elements that one rank sends in a layer's forward pass; the backward pass sends as many.

        They are of `work.bytes_per_element` bytes each; what travels in a wider format counts as more of them.

        Args:
            work: of whole rows, the fixed streams' among them: of those that come out, or, where whole rows are
                gathered, those that go in. Of none, what is exchanged of the streams alone.
        """
        gathered = config.hidden_size * (1 + mixer.needs_static_embeddings)
        return work.tokens // cp_size * (cp_size - 1) * gathered

    def gathers(self, mixer: type[AnyMixer], config: ModelConfig, tp_size: int, cp_size: int) -> bool:
        """Return whether every rank mixes whole rows, as by default; a subclass that does so at times says when."""
        return type(self).mix is ContextExchange.mix

    def activation_bytes(self, mixer: type[AnyMixer], config: ModelConfig, work: Workload, cp_size: int) -> int:
        """Return the bytes that a rank saves of a layer's mixer for backward, its input among them.

        Of a rank's part, what was mixed comes back as another tensor, which the output projection keeps.

        Args:
            work: of whole rows, the fixed streams' among them.
        """
        if self.gathers(mixer, config, work.tp_size, cp_size):
            return mixer.activation_bytes(config, work)
        part = replace(work, length=work.length // cp_size)
        mixed = largest_part(config.query_size, config.num_attention_heads, work.tp_size)
        return mixer.activation_bytes(config, part) + work.bytes_per_element * part.tokens * mixed

    def forward_flops(self, mixer: type[AnyMixer], config: ModelConfig, work: Workload, cp_size: int) -> int:
        """Return the FLOPs of a layer's forward pass on one rank: an equal share, or all where rows are gathered."""
        whole = mixer.forward_flops(config, work)
        return whole if self.gathers(mixer, config, work.tp_size, cp_size) else whole // cp_size


class NoExchange(ContextExchange["Mixer"]):
    """Exchange of a mixer that reads each token alone: none."""

    def mix(self, mixer: "Mixer", hidden: Tensor, static: Tensor | None, context: SharedContext) -> Tensor:
        return type(mixer).forward(mixer, hidden, static, context)

    def sent_elements(self, mixer: "type[Mixer]", config: ModelConfig, work: Workload, cp_size: int) -> int:
        return 0

    def activation_bytes(self, mixer: "type[Mixer]", config: ModelConfig, work: Workload, cp_size: int) -> int:
        return mixer.activation_bytes(config, replace(work, length=work.length // cp_size))


def over_heads(heads: int, key_value_heads: int, cp_size: int) -> int | None:
    """Return how many key/value heads :func:`attend_over_heads` exchanges of so many; None: heads do not divide.

    Where several ranks need a key/value head, each gets its copy.
    """
    if heads % cp_size:
        return None
    if key_value_heads % cp_size == 0:
        return key_value_heads
    return cp_size if cp_size % key_value_heads == 0 else None


def some_heads(ranks: ContextRanks, keys: Tensor, served: int) -> Tensor:
    """Exchange tokens for heads of keys or values, of which `served` are to be there: see :func:`over_heads`."""
    return ranks.to_heads(keys if keys.shape[1] == served else per_query_head(keys, served))


def exchange_of(mixer: "type[Mixer]") -> ContextExchange[Any]:
    """Return the exchange of a class: what it or a base declares, unless its `forward` has come after that."""
    for cls in mixer.__mro__:
        if "context_exchange" in vars(cls):
            declared: ContextExchange[Any] = vars(cls)["context_exchange"]
            return declared
        if "forward" in vars(cls):
            break
    return ContextExchange()


def exchanged(
    mixer: "Mixer", hidden: Tensor, static: Tensor | None, context: SharedContext, cache: LayerCache | None = None
) -> Tensor:
    """Run a mixer on this rank's part of rows: what stands in the place of its `forward`, cache and all."""
    exchange = exchange_of(type(mixer))
    if cache is not None:
        cache.fixed = exchange.held(mixer.decoding.fixed_part(mixer, hidden, static, context), context)
        if context.output_rows == 0:
            return hidden[:0]
        if mixer.decoding.shares_fixed_part:
            context = replace(context, fixed=cache.fixed)
    return exchange.mix(mixer, hidden, static, context)


def _ranks(context: SharedContext) -> ContextRanks:
    assert context.ranks is not None
    return context.ranks
