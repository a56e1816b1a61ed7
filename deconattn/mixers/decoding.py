"""Decoding of a mixer: its forward pass with a cache, the cache and their costs, as one object."""

from dataclasses import replace
from typing import TYPE_CHECKING, Generic, TypeVar

import torch
from torch import Tensor

from deconattn.layers.config import ModelConfig
from deconattn.layers.rotary import Rotary
from deconattn.mixers.cache import LayerCache, Step, new_tokens_of
from deconattn.mixers.context import MixerContext
from deconattn.mixers.costs import Workload

if TYPE_CHECKING:
    from deconattn.mixers.base import Mixer

AnyMixer = TypeVar("AnyMixer", bound="Mixer")


class Decoding(Generic[AnyMixer]):
    """Decoding for any causal mixer: the whole sequence is cached and mixed again.

    A subclass keeps and computes less. It has no state: what it holds of a sequence is in the cache that
    :meth:`new_cache` makes.
    """

    shares_fixed_part: bool = False
    """Whether the mixer's `forward` reads :meth:`fixed_part` from `context.fixed`, where that is given."""

    def new_cache(self) -> LayerCache:
        """Return an empty cache, for :meth:`extend` to fill."""
        return LayerCache()

    def extend(self, mixer: AnyMixer, hidden: Tensor, static: Tensor | None, step: Step, cache: LayerCache) -> Tensor:
        """Run the mixer's forward pass for tokens that continue those in the cache, which then holds them too.

        What padding's outputs are does not matter.

        Args:
            hidden: [R, T, d], normed hidden states of the new tokens; fixed streams have no rows here.
            static: [R, T, d], their embeddings through the same norm, or None if no layer needs them.

        Returns:
            [R, T, d].
        """
        whole = cache.append("hidden", hidden[:, None], step)[:, 0]
        if mixer.needs_static_embeddings:
            assert static is not None
            static = cache.append("static", static[:, None], step)[:, 0]
        positions = torch.arange(step.window, device=hidden.device)[None]
        context = MixerContext(Rotary.of(mixer.config, positions, hidden.dtype), None, {})
        if mixer.fixed_stream is not None:
            parts = [part[:, : step.window] for part in cache.fixed]
            whole = torch.cat([whole, parts[0]])
            static = None if static is None else torch.cat([static, parts[1]])
            context = replace(context, fixed_rows={mixer.fixed_stream: -1})
        # Not the module: this is its call already.
        mixed = type(mixer).forward(mixer, whole, static, context)[: len(hidden)]
        return new_tokens_of(mixed, step, hidden.shape[1])

    def fixed_part(
        self, mixer: AnyMixer, hidden: Tensor, static: Tensor | None, context: MixerContext
    ) -> tuple[Tensor, ...]:
        """Compute what :meth:`extend` needs of the fixed streams: once for all rows of a cache, as `cache.fixed`.

        Args:
            hidden: [S, L, d], normed hidden states of the fixed streams alone, in `context.fixed_rows`.
            static: [S, L, d] or None.

        Returns:
            Tensors [n, L, x].
        """
        if mixer.fixed_stream is None:
            return ()
        row = context.fixed_rows[mixer.fixed_stream]
        sources = (hidden, static) if mixer.needs_static_embeddings else (hidden,)
        return tuple(source[row].unsqueeze(0) for source in sources if source is not None)

    def prefill_flops(self, mixer: type[AnyMixer], config: ModelConfig, work: Workload) -> int:
        """FLOPs of a first cached pass, which fills the cache; what is computed once for all rows does not count."""
        return mixer.forward_flops(config, work) - self.fixed_flops(mixer, config, work.length)

    def decode_flops(self, mixer: type[AnyMixer], config: ModelConfig, work: Workload) -> int:
        """FLOPs of one new token in each row, the last of `work.length` tokens."""
        return mixer.forward_flops(config, work)

    def cache_bytes(self, mixer: type[AnyMixer], config: ModelConfig, work: Workload) -> int:
        """Bytes of one layer's cache with room for `work.length` tokens in each row."""
        return work.tokens * config.hidden_size * work.bytes_per_element * (1 + mixer.needs_static_embeddings)

    def fixed_flops(self, mixer: type[AnyMixer], config: ModelConfig, length: int) -> int:
        """FLOPs of :meth:`fixed_part` for `length` tokens: once for a cache, whatever the batch."""
        return 0

    def fixed_bytes(self, mixer: type[AnyMixer], config: ModelConfig, length: int, bytes_per_element: int) -> int:
        """Bytes of :meth:`fixed_part` for `length` tokens: once for a cache, whatever the batch."""
        if mixer.fixed_stream is None:
            return 0
        return length * config.hidden_size * bytes_per_element * (1 + mixer.needs_static_embeddings)
