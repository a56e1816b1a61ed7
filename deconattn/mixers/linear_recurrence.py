"""Recurrent mixers whose state is linear in the one before it, channel by channel.

S_t = diag(exp(a_t)) S_{t-1} + k_t v_t^T,    a_t <= 0
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from deconattn.layers.config import ModelConfig
from deconattn.layers.shards import largest_part
from deconattn.mixers.costs import Workload
from deconattn.mixers.exchange import ContextExchange, SharedContext
from deconattn.mixers.recurrent import RecurrentMixer, Span
from deconattn.mixers.state_exchange import earlier_ranks, sent_states
from deconattn.ops.precision import at_least_fp32
from deconattn.ops.recompute import recomputed


class StateExchange(ContextExchange["LinearRecurrence"]):
    """Exchange of the state that each rank's part leaves of its last document, and of the decay of an earlier one.

    A part is mixed twice: from nothing, for that state, and from the state that earlier ranks leave, which all find by
    themselves. Before that they exchange the last inputs of short convolutions. Where a part has fewer tokens than
    these reach back, whole rows are gathered.
    """

    def mix(self, mixer: "LinearRecurrence", hidden: Tensor, static: Tensor | None, context: SharedContext) -> Tensor:
        ranks = context.ranks
        assert ranks is not None
        if hidden.shape[1] < mixer.taps - 1:
            return super().mix(mixer, hidden, static, context)
        operands = mixer.operands(hidden)
        span = Span(context.documents, past=ranks.rank * hidden.shape[1])
        inputs = _last_inputs_before(mixer.convolved_inputs(*operands), mixer.taps - 1, context)
        left = recomputed(partial(_left, mixer, span, len(inputs)), *inputs, *operands)
        state = _state_before(ranks.whole(left[None], dim=0), mixer.decays, context)
        mixed = recomputed(partial(_continued, mixer, span, len(inputs) + 1), *inputs, state, *operands)
        return mixer.o_proj(mixed)

    def sent_elements(self, mixer: type["LinearRecurrence"], config: ModelConfig, work: Workload, cp_size: int) -> int:
        if work.length // cp_size < mixer.taps - 1:
            return super().sent_elements(mixer, config, work, cp_size)
        keys, values = mixer.widths(config)
        heads = largest_part(config.num_attention_heads, config.num_attention_heads, work.tp_size)
        local = replace(config, num_attention_heads=heads, num_key_value_heads=1)
        inputs = (mixer.taps - 1) * mixer.convolved_channels(local, keys, values)
        state = mixer.state_size(local, keys, values) - inputs + mixer.decays * heads * keys
        return sent_states(state, work, cp_size) + (cp_size - 1) * work.rows * inputs


class LinearRecurrence(RecurrentMixer):
    """A mixer of which a part leaves the state that it makes of nothing, and what is left of the one before it.

    A subclass whose state decays says so by :attr:`decays` and :meth:`log_decays`, and one with short convolutions by
    :attr:`taps`, :meth:`convolved_inputs` and :meth:`convolved_channels`. The state of :meth:`mix` is the last inputs
    of these and S, [R, heads, x, y].
    """

    decays: ClassVar[bool] = False
    """Whether the state decays."""
    taps: ClassVar[int] = 1
    """Taps of its short convolutions."""
    context_exchange = StateExchange()

    def log_decays(self, *operands: Tensor) -> Tensor:
        """Return a_t <= 0, [R, heads, L, x or 1], at least fp32, of what :meth:`operands` returns."""
        raise NotImplementedError

    def convolved_inputs(self, *operands: Tensor) -> Sequence[Tensor]:
        """Return what goes through short convolutions, [R, L, n] each."""
        return ()

    @classmethod
    def convolved_channels(cls, config: ModelConfig, keys: int, values: int) -> int:
        """Return the number of channels that go through short convolutions."""
        return 0


def _left(mixer: LinearRecurrence, span: Span, given: int, *tensors: Tensor) -> Tensor:
    """S after a part that follows nothing but `given` inputs of convolutions; its decay is one more column."""
    inputs, operands = tensors[:given], tensors[given:]
    *_, state = mixer.mix(replace(span, state=inputs), *operands)[1]
    if not mixer.decays:
        return state
    decay = mixer.log_decays(*operands).sum(dim=2)[..., None]
    return torch.cat([state, decay.expand(*state.shape[:-1], 1)], dim=-1)


def _continued(mixer: LinearRecurrence, span: Span, given: int, *tensors: Tensor) -> Tensor:
    """What the output projection reads of a part that follows a state."""
    return mixer.mix(replace(span, state=tensors[:given]), *tensors[given:])[0]


def _state_before(left: Tensor, decays: bool, context: SharedContext) -> Tensor:
    """S before this rank's part, of what :func:`_left` returns on each, [cp_size, R, heads, x, y or y + 1]."""
    ranks = context.ranks
    assert ranks is not None
    counts = earlier_ranks(context, left.device)[..., None, None, None]
    if not decays:
        return left.masked_fill(~counts, 0).sum(dim=0)
    states, logs = left[..., :-1], left[..., -1:]
    index = torch.arange(ranks.size, device=left.device)
    between = (index > index[:, None]) & (index < ranks.rank)
    # Summed for each rank by itself: differences of sums would cancel.
    kept = (between.to(logs.dtype) @ logs.flatten(1)).view_as(logs).exp()
    return (states * kept).masked_fill(~counts, 0).sum(dim=0)


def _last_inputs_before(inputs: Sequence[Tensor], count: int, context: SharedContext) -> list[Tensor]:
    """The last `count` inputs on the rank before, on the first zeros: [R, L, n] each -> [R, count, n], >= fp32."""
    if not inputs:
        return []
    ranks = context.ranks
    assert ranks is not None
    last = torch.cat([one[:, one.shape[1] - count :] for one in inputs], dim=-1)
    shifted = pad(ranks.whole(last[None], dim=0), (0, 0, 0, 0, 0, 0, 1, 0))
    return list(at_least_fp32(shifted[ranks.rank]).split([one.shape[2] for one in inputs], dim=-1))
