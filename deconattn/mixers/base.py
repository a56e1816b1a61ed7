"""Contract of a mixer: everything that depends on the variant of a layer, and nothing else does.

A variant is one file: a subclass of :class:`Mixer` (or of :class:`~deconattn.mixers.projected.ProjectedMixer`, which
has the four projections of multi-head attention) under :func:`deconattn.mixers.register`. Training, parameter matching,
FLOPs, analysis and export then work with it; `tests/mixers/test_contract.py` runs over every registered name.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import wraps
from typing import Any, ClassVar

from torch import Tensor, nn

from deconattn.layers.config import ModelConfig
from deconattn.layers.splits import Split
from deconattn.mixers.cache import LayerCache, Step
from deconattn.mixers.context import FixedStream, MixerContext
from deconattn.mixers.costs import Workload
from deconattn.mixers.decoding import Decoding
from deconattn.mixers.exchange import ContextExchange
from deconattn.mixers.map_blocks import MapBlock, cut
from deconattn.mixers.principles import Principles


class Mixer(nn.Module, ABC):
    """Token mixer of one layer: [R, L, hidden_size] -> [R, L, hidden_size].

    Parameters carry Hugging Face names; the module is a block's `self_attn`.
    """

    fixed_stream: ClassVar[FixedStream | None] = None
    """Fixed stream that the layer reads beside the hidden states, carried as an extra row."""
    needs_static_embeddings: ClassVar[bool] = False
    """Whether the layer reads the token embeddings (through its own input norm)."""
    splits: ClassVar[Mapping[str, Split] | None] = None
    """Tensor-parallel split of each linear layer, by its name here; None: it cannot be cut.

    A parameter or buffer that belongs to some heads, such as a slope a head, is named too.
    """
    principles: ClassVar[Principles | None] = None
    """What it keeps of standard attention, by which tables are grouped; None: nobody has said."""
    decoding: ClassVar[Decoding[Any]] = Decoding()
    """Decoding that continues a sequence as :meth:`forward` would: by default the whole is mixed again."""
    context_exchange: ClassVar[ContextExchange[Any]] = ContextExchange()
    """What ranks exchange that share each sequence: by default all have the whole of it, and keep their part.

    One that a base class declares does not hold for a subclass with a `forward` of its own.
    """

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        if getattr(cls.forward, "decodes", None) is not cls.forward:
            cls.forward = _or_extend(cls.forward)  # type: ignore[method-assign]

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config

    @abstractmethod
    def forward(self, hidden: Tensor, static: Tensor | None, context: MixerContext) -> Tensor:
        """Mix tokens.

        Args:
            hidden: [R, L, d], normed hidden states, the fixed streams' rows last.
            static: [R, L, d], the token embeddings through the same norm, or None if no layer needs them.

        Returns:
            [R, L, d]: what the residual stream receives, for every row or the first `context.output_rows`.

        Called with a :class:`Step` and a cache in the context's place, a mixer is its :attr:`decoding`; with a cache
        beside the context of the fixed streams alone, it fills `cache.fixed`, too. So cached passes go through the
        module as others do, and meet what is hung on it (hooks, offloading, a replaced `forward`).
        """

    def became_part(self, rank: int, ranks: int) -> None:
        """Note that the tensors in :attr:`splits` are now those of one rank of tensor parallelism: nothing by default.

        Called for what knows its heads by their numbers, once the tensors have been cut.
        """

    def taken_from(self, name: str, value: Tensor) -> dict[str, Tensor]:
        """Return what this layer's tensors take, by their names here, of the tensor `name` of a layer in its place.

        What is here under another name, or with another shape, is left.
        """
        return {name: value}

    def attention_map(self, hidden: Tensor, static: Tensor | None, context: MixerContext) -> Tensor | None:
        """Return the map A that `forward` applies, [R, heads, L, L]; None if nothing is mixed.

        A class gives this or :meth:`map_blocks`; each follows from the other. A map is causal, no weight of it is
        negative, and its rows sum to one: what mixes by another rule has none to show.
        """
        blocks = [*self.map_blocks(hidden, static, context, hidden.shape[1])]
        return blocks[0].weights if blocks else None

    def map_blocks(self, hidden: Tensor, static: Tensor | None, context: MixerContext, size: int) -> Iterator[MapBlock]:
        """Yield :meth:`attention_map` in blocks of `size` rows, first rows first; no block if nothing is mixed.

        A class that gives it holds one block at a time, and shows the activations before the softmax.
        """
        whole = self.attention_map(hidden, static, context)
        if whole is not None:
            yield from cut(whole, size)

    def reference(self, hidden: Tensor, static: Tensor | None, context: MixerContext) -> Tensor:
        """Compute :meth:`forward` of all rows by its formula, plainly and slowly: what tests compare it with."""
        raise NotImplementedError(f"{type(self).__qualname__} has no reference")

    @classmethod
    def made_of(cls) -> "tuple[type[Mixer], ...]":
        """Return the classes whose code a layer runs: this one, or its parts'."""
        return (cls,)

    @classmethod
    def check_parts(cls, config: ModelConfig, ranks: int) -> None:
        """Check the parts of a layer, and that so many ranks of tensor parallelism can cut each; others are but one.

        Raises:
            UserError: a part that cannot be, or cannot be cut, with the remedy.
        """

    @classmethod
    @abstractmethod
    def num_parameters(cls, config: ModelConfig) -> int:
        """Number of parameters of one layer's mixer; within 0.1 % of a layer equal to standard attention's."""

    @classmethod
    @abstractmethod
    def forward_flops(cls, config: ModelConfig, work: Workload) -> int:
        """FLOPs of one layer's forward pass (2 a multiply-add; causal maps half of L^2)."""

    @classmethod
    @abstractmethod
    def activation_bytes(cls, config: ModelConfig, work: Workload) -> int:
        """Bytes saved for backward by one layer's mixer, its input among them, without document masks.

        With tensor parallelism the input is whole on each rank; :mod:`deconattn.cost.activations` takes off what linear
        layers need not keep of it under sequence parallelism.
        """


def _or_extend(plain: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Wrap a class's `forward` to continue a cache, or to prepare it, where it is given one."""

    @wraps(plain)
    def forward(
        self: Mixer,
        hidden: Tensor,
        static: Tensor | None,
        context: MixerContext | Step,
        cache: LayerCache | None = None,
    ) -> Tensor:
        if isinstance(context, Step):
            assert cache is not None
            return self.decoding.extend(self, hidden, static, context, cache)
        if cache is not None:
            cache.fixed = self.decoding.fixed_part(self, hidden, static, context)
            if context.output_rows == 0:
                return hidden[:0]
            if self.decoding.shares_fixed_part:
                context = replace(context, fixed=cache.fixed)
        return plain(self, hidden, static, context)

    forward.decodes = forward  # type: ignore[attr-defined]
    return forward
