"""Recurrent mixers whose state is linear in the one before it, so that parts of a row can be mixed side by side.

S_t = M_t S_{t-1} + k_t v_t^T,    M_t = 1, diag(exp(a_t)) with a_t <= 0, or a matrix
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor

from deconattn.layers.config import ModelConfig
from deconattn.layers.shards import largest_part
from deconattn.mixers.costs import Workload
from deconattn.mixers.exchange import ContextExchange, SharedContext
from deconattn.mixers.recurrent import RecurrentMixer, Span
from deconattn.mixers.state_exchange import earlier_ranks, last_inputs_before, sent_states
from deconattn.ops.recompute import recomputed

Transition = Literal["none", "decay", "matrix"]
"""What becomes of a state over several tokens, beside what these add to it: how many numbers say so."""


class StateExchange(ContextExchange["LinearRecurrence"]):
    """Exchange of the state that each rank's part leaves of its last document, and of what it leaves of an earlier one.

    A part is mixed twice: from nothing, for that state, and from the state that earlier ranks leave, which all find by
    themselves. Before that they exchange the last inputs of short convolutions. Where a part has fewer tokens than
    these reach back, whole rows are gathered.
    """

    def mix(self, mixer: "LinearRecurrence", hidden: Tensor, static: Tensor | None, context: SharedContext) -> Tensor:
        ranks = context.ranks
        if hidden.shape[1] < mixer.taps - 1:
            return super().mix(mixer, hidden, static, context)
        operands = mixer.operands(hidden)
        span = Span(context.documents, past=ranks.rank * hidden.shape[1])
        inputs = last_inputs_before(mixer.convolved_inputs(*operands), mixer.taps - 1, context)
        left = recomputed(partial(_left, mixer, span, len(inputs)), *inputs, *operands)
        state = _state_before(ranks.whole(left[None], dim=0), mixer.transition, context)
        mixed = recomputed(partial(_continued, mixer, span, len(inputs) + 1), *inputs, state, *operands)
        return mixer.o_proj(mixed)

    def gathers(self, mixer: type["LinearRecurrence"], config: ModelConfig, work: Workload, cp_size: int) -> bool:
        return work.length // cp_size < mixer.taps - 1

    def forward_flops(self, mixer: type["LinearRecurrence"], config: ModelConfig, work: Workload, cp_size: int) -> int:
        if self.gathers(mixer, config, work, cp_size):
            return super().forward_flops(mixer, config, work, cp_size)
        again = work.tokens * mixer.mixing_flops(config, *mixer.widths(config))
        return (mixer.forward_flops(config, work) + again) // cp_size

    def sent_elements(self, mixer: type["LinearRecurrence"], config: ModelConfig, work: Workload, cp_size: int) -> int:
        if self.gathers(mixer, config, work, cp_size):
            return super().sent_elements(mixer, config, work, cp_size)
        keys, values = mixer.widths(config)
        heads = largest_part(config.num_attention_heads, config.num_attention_heads, work.tp_size)
        local = replace(config, num_attention_heads=heads, num_key_value_heads=1)
        inputs = (mixer.taps - 1) * mixer.convolved_channels(local, keys, values)
        columns = {"none": 0, "decay": 1, "matrix": keys}[mixer.transition]
        state = mixer.state_size(local, keys, values) - inputs + heads * keys * columns
        return sent_states(state, work, cp_size) + (cp_size - 1) * work.rows * inputs


class LinearRecurrence(RecurrentMixer):
    """A mixer of which a part leaves the state that it makes of nothing, and what is left of the one before it.

    A subclass with transitions says so by :attr:`transition` and :meth:`left`, and one with short convolutions by
    :attr:`taps`, :meth:`convolved_inputs` and :meth:`convolved_channels`. The state of :meth:`mix` is the last inputs
    of these and S, [R, heads, x, y].
    """

    transition: ClassVar[Transition] = "none"
    taps: ClassVar[int] = 1
    """Taps of its short convolutions."""
    context_exchange = StateExchange()

    def left(self, span: Span, *operands: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the S that tokens leave of nothing, [R, heads, x, y], and what of an earlier one.

        Args:
            span: its state is that of convolutions alone.
            operands: what :meth:`operands` returns.

        Returns:
            The sums of a_t, [R, heads, x or 1], the product of M_t, [R, heads, x, x], or None where all is left. It
            matters only where all tokens are of one document.
        """
        return self.mix(span, *operands)[1][-1], None

    def convolved_inputs(self, *operands: Tensor) -> Sequence[Tensor]:
        """Return what goes through short convolutions, [R, L, n] each."""
        return ()

    @classmethod
    def convolved_channels(cls, config: ModelConfig, keys: int, values: int) -> int:
        """Return the number of channels that go through short convolutions."""
        return 0


class DecayingRecurrence(LinearRecurrence):
    """A mixer whose state decays as :meth:`log_decays` says."""

    transition = "decay"

    def log_decays(self, *operands: Tensor) -> Tensor:
        """Return a_t <= 0, [R, heads, L, x or 1], at least fp32, of what :meth:`operands` returns."""
        raise NotImplementedError

    def left(self, span: Span, *operands: Tensor) -> tuple[Tensor, Tensor | None]:
        return super().left(span, *operands)[0], self.log_decays(*operands).sum(dim=2)


def _left(mixer: LinearRecurrence, span: Span, given: int, *tensors: Tensor) -> Tensor:
    """What a part leaves that follows nothing but `given` inputs of convolutions; the transition is more columns."""
    inputs, operands = tensors[:given], tensors[given:]
    state, transition = mixer.left(replace(span, state=inputs), *operands)
    if transition is None:
        return state
    columns = transition[..., None] if transition.ndim == 3 else transition
    return torch.cat([state, columns.expand(*state.shape[:3], -1)], dim=-1)


def _continued(mixer: LinearRecurrence, span: Span, given: int, *tensors: Tensor) -> Tensor:
    """What the output projection reads of a part that follows a state."""
    return mixer.mix(replace(span, state=tensors[:given]), *tensors[given:])[0]


def _state_before(left: Tensor, transition: Transition, context: SharedContext) -> Tensor:
    """S before this rank's part, of what :func:`_left` returns on each, [cp_size, R, heads, x, y + columns]."""
    assert context.ranks is not None
    columns = {"none": 0, "decay": 1, "matrix": left.shape[3]}[transition]
    states, transitions = left.split([left.shape[4] - columns, columns], dim=-1)
    counts = earlier_ranks(context, left.device)[..., None, None, None]
    here = context.ranks.rank
    state = states[here].masked_fill(~counts[here], 0)  # zeros, of what all exchanged: the backward passes are to meet
    for rank in range(here):
        if transition == "matrix":
            state = transitions[rank] @ state
        elif transition == "decay":
            state = transitions[rank].exp() * state
        state = (states[rank] + state).masked_fill(~counts[rank], 0)
    return state
