"""Loss by position in the context, and in-context learning: how much the tokens before help."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from deconattn.analysis import passes
from deconattn.errors import UserError
from deconattn.model.decoder import Decoder
from deconattn.ops.cross_entropy import LOGITS_AT_ONCE
from deconattn.ops.precision import at_least_fp32
from deconattn.statistics import Interval, mean_interval

EARLY, LATE = 50, 500
"""Tokens, counted from 1, whose losses the in-context-learning score compares (Olsson et al. 2022)."""
BINS_AN_OCTAVE = 4
"""Bins of positions in a doubling of the context."""


@dataclass(frozen=True)
class PositionLosses:
    """Losses in nats, float64 [N, L - 1]: column i - 2 is of token i, counted from 1, given the i - 1 before it."""

    losses: Tensor

    @property
    def loss(self) -> Interval:
        """Loss of all tokens, over sequences."""
        return mean_interval(self.losses.mean(dim=1).tolist())

    @property
    def compared(self) -> tuple[int, int]:
        """The early and the late token that :attr:`in_context` compares: 50 and 500, or L and a tenth of it."""
        late = min(LATE, self.losses.shape[1] + 1)
        return max(2, late * EARLY // LATE), late

    @property
    def in_context(self) -> Interval:
        """In-context-learning score: loss of the late token less that of the early one, over sequences."""
        early, late = self.compared
        return mean_interval((self.losses[:, late - 2] - self.losses[:, early - 2]).tolist())

    def binned(self, an_octave: int = BINS_AN_OCTAVE) -> list[tuple[int, int, Interval]]:
        """First and last token of each bin, by default quarter octaves of the context, and the loss of its tokens."""
        length = self.losses.shape[1] + 1
        octaves = (2 * 2 ** (k / an_octave) for k in range(32 * an_octave))
        # The last bin takes what would be a bin of a few tokens after it.
        edges = [*sorted({round(edge) for edge in octaves if edge < 0.9 * length}), length + 1]
        return [
            (first, stop - 1, mean_interval(self.losses[:, first - 2 : stop - 2].mean(dim=1).tolist()))
            for first, stop in pairwise(edges)
        ]


def token_losses(head: Callable[[Tensor], Tensor], hidden: Tensor, ids: Tensor) -> Tensor:
    """Return the loss of every token but the first, float64 [B, L - 1]; logits of a slice of tokens at a time.

    Args:
        head: hidden states [.., d] to logits.
        hidden: [B, L, d], what the head reads.
        ids: int64 [B, L].
    """
    flat, targets = hidden[:, :-1].flatten(0, 1), ids[:, 1:].flatten().to(hidden.device)
    with torch.inference_mode():
        rows = max(1, LOGITS_AT_ONCE // head(flat[:1]).shape[-1])
        parts = [
            cross_entropy(at_least_fp32(head(some)), theirs, reduction="none")
            for some, theirs in zip(flat.split(rows), targets.split(rows), strict=True)
        ]
    return torch.cat(parts).view(len(ids), -1).double().cpu()


def position_losses(
    decoder: Decoder,
    head: nn.Module,
    ids: Tensor,
    label: str,
    advance: Callable[[int], object] = lambda sequences: None,
) -> PositionLosses:
    """Run the sample, int64 [N, L]; arguments as :func:`~deconattn.analysis.collect.collect` takes them.

    Raises:
        UserError: a loss that is no number.
    """
    found = []
    for batch in ids.split(passes.BATCH):
        found.append(token_losses(head, passes.hidden_states(decoder, batch), batch))
        check_finite(found[-1], label)
        advance(len(batch))
    return PositionLosses(torch.cat(found))


def check_finite(losses: Tensor, label: str) -> None:
    """Raises UserError unless all losses are numbers."""
    if not losses.isfinite().all():
        raise UserError(f"{label}: its loss on the sample is no finite number: give another checkpoint")
