"""Exchange of a mixer under context parallelism: how a layer reads the tokens that other ranks have, as one object."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from deconattn.layers.config import ModelConfig
from deconattn.layers.rotary import Rotary
from deconattn.mixers.cache import LayerCache
from deconattn.mixers.context import FixedStream, MixerContext
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

    def context(
        self,
        rotary: Callable[[Tensor], Rotary],
        positions: Tensor,
        documents: Documents | None,
        fixed_rows: dict[FixedStream, int],
    ) -> "SharedContext":
        """Return the context of this rank's part: :meth:`SharedContext.of`."""

    def whole(self, part: Tensor, dim: int = 1) -> Tensor:
        """Gather the parts of all ranks along a dimension."""

    def part(self, whole: Tensor, dim: int = 1) -> Tensor:
        """Return this rank's part of what all have; no exchange."""

    def to_heads(self, parts: Tensor) -> Tensor:
        """Exchange tokens for heads: [R, heads, L / size, x] -> this rank's [R, heads / size, L, x]."""

    def to_tokens(self, heads: Tensor) -> Tensor:
        """Undo :meth:`to_heads`."""

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, documents: Documents | None) -> Tensor:
        """Compute this rank's part of softmax attention over whole rows; no rank gathers them.

        Args:
            queries: [R, heads, L / size, head_dim], in their places.
            keys, values: [R, key_value_heads, L / size, x].
            documents: of the whole rows.
        """


@dataclass(frozen=True, eq=False)
class SharedContext(MixerContext):
    """Context of this rank's part of rows that several ranks share; offsets of its documents are unknown.

    Attributes:
        ranks: those that share them.
        whole_documents: boundaries in the whole rows, or None where a row is one document.
        whole_rotary: returns cosines and sines of the whole rows' positions; few mixers ask.
    """

    ranks: ContextRanks = field(kw_only=True)
    whole_documents: Documents | None = field(kw_only=True)
    whole_rotary: Callable[[], Rotary] = field(kw_only=True)

    @classmethod
    def of(
        cls,
        ranks: ContextRanks,
        rotary: Callable[[Tensor], Rotary],
        positions: Tensor,
        documents: Documents | None,
        fixed_rows: dict[FixedStream, int],
    ) -> "SharedContext":
        """Return the context of this rank's part of whole rows.

        Args:
            rotary: returns cosines and sines of positions.
            positions: of whole rows, int64 [R or 1, L].
            documents: of whole rows.
        """
        part = None
        if documents is not None:
            part = Documents(ranks.part(documents.ids), ranks.part(documents.position_ids))
        return cls(
            rotary(ranks.part(positions)),
            part,
            fixed_rows,
            ranks=ranks,
            whole_documents=documents,
            whole_rotary=cache(partial(rotary, positions)),
        )

    def to(self, device: torch.device) -> MixerContext:
        raise NotImplementedError("a layer that shares its rows with other ranks is on their devices")

    def rows(self, count: int) -> "SharedContext":
        documents = None if self.documents is None else self.documents.rows(count)
        whole = None if self.whole_documents is None else self.whole_documents.rows(count)
        make = self.whole_rotary
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
        ranks = context.ranks
        whole = ranks.whole(hidden)
        if static is not None and mixer.needs_static_embeddings:
            static = ranks.whole(static)
        return ranks.part(type(mixer).forward(mixer, whole, static, context.whole()))

    def held(self, fixed: tuple[Tensor, ...], context: SharedContext) -> tuple[Tensor, ...]:
        """Return what `context.fixed` is to be, of this rank's part of it: tensors [n, L / cp_size, x]."""
        return tuple(context.ranks.whole(part) for part in fixed)

    def sent_elements(self, mixer: type[AnyMixer], config: ModelConfig, work: Workload, cp_size: int) -> int:
        """Return the elements that one rank sends in a layer's forward pass: the one that sends most, of one document.

        They are of `work.bytes_per_element` bytes each; what travels in a wider format counts as more of them.

        Args:
            work: of whole rows, the fixed streams' among them: of those that come out, or, where whole rows are
                gathered, those that go in. Of none, what is exchanged of the streams alone.
        """
        gathered = config.hidden_size * (1 + mixer.needs_static_embeddings)
        return work.tokens // cp_size * (cp_size - 1) * gathered

    def sent_backward(self, mixer: type[AnyMixer], config: ModelConfig, work: Workload, cp_size: int) -> int:
        """Return the elements that one rank sends in a layer's backward pass, as :meth:`sent_elements` does."""
        return self.sent_elements(mixer, config, work, cp_size)

    def gathers(self, mixer: type[AnyMixer], config: ModelConfig, work: Workload, cp_size: int) -> bool:
        """Return whether every rank mixes whole rows, as by default; a subclass that does so at times says when."""
        return type(self).mix is ContextExchange.mix

    def activation_bytes(self, mixer: type[AnyMixer], config: ModelConfig, work: Workload, cp_size: int) -> int:
        """Return the bytes that a rank saves of a layer's mixer for backward, its input among them.

        Args:
            work: of whole rows, the fixed streams' among them.
        """
        if self.gathers(mixer, config, work, cp_size):
            return mixer.activation_bytes(config, work)
        part = replace(work, length=work.length // cp_size)
        returned = work.bytes_per_element * part.tokens * self.returned(mixer, config, work, cp_size)
        return mixer.activation_bytes(config, part) + returned

    def returned(self, mixer: type[AnyMixer], config: ModelConfig, work: Workload, cp_size: int) -> int:
        """Return the elements a token that come back mixed as another tensor, which the output projection keeps."""
        return 0

    def forward_flops(self, mixer: type[AnyMixer], config: ModelConfig, work: Workload, cp_size: int) -> int:
        """Return the FLOPs of a layer's forward pass on one rank: an equal share, or all where rows are gathered."""
        whole = mixer.forward_flops(config, work)
        return whole if self.gathers(mixer, config, work, cp_size) else whole // cp_size


class NoExchange(ContextExchange["Mixer"]):
    """Exchange of a mixer that reads each token alone: none."""

    def mix(self, mixer: "Mixer", hidden: Tensor, static: Tensor | None, context: SharedContext) -> Tensor:
        return type(mixer).forward(mixer, hidden, static, context)

    def sent_elements(self, mixer: "type[Mixer]", config: ModelConfig, work: Workload, cp_size: int) -> int:
        return 0


def over_heads(heads: int, key_value_heads: int, cp_size: int) -> int | None:
    """Return how many key/value heads :func:`some_heads` exchanges of so many; None: heads do not divide by the ranks.

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


def sent_in_turn(head_dim: int, heads: int, key_value_heads: int, work: Workload, cp_size: int) -> tuple[int, int]:
    """Return what :meth:`ContextRanks.attend` sends of so many heads, forward and backward, of one document.

    Forward the first rank sends most: its keys and values in every round, and in every round the results of others'
    queries. Backward the last rank does: its queries, what was mixed of them and its gradient, and the gradients of
    others' keys and values. Log-sum-exps of 4 bytes go with results and queries.
    """
    part, rounds = work.length // cp_size, (cp_size - 1) // 2
    queries, keys_values = heads * head_dim, 2 * key_value_heads * head_dim
    lse = heads * max(4, work.bytes_per_element) // work.bytes_per_element
    # With an even number of ranks there is a round more, of half of the queries.
    of_queries = rounds * part + (cp_size % 2 == 0) * ((part + 1) // 2)
    of_keys = cp_size // 2 * part
    forward = of_queries * (queries + lse) + of_keys * keys_values
    backward = of_queries * (3 * queries + lse) + of_keys * keys_values
    return work.rows * forward, work.rows * backward


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
