"""Induction and previous-token heads, on random tokens that come twice (Olsson et al. 2022, arXiv 2209.11895)."""

from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deconattn.analysis import passes
from deconattn.analysis.losses import check_finite, token_losses
from deconattn.mixers import MapBlock, Mixer
from deconattn.model.decoder import Decoder
from deconattn.statistics import Interval, mean_interval

SCORES = ("induction", "previous token")


@dataclass(frozen=True)
class InductionFindings:
    """Scores of the heads of a map A over 2T tokens, of which the last T are the first T again.

    - Induction: mean of A_{i, i-T+1} over the second copy, i = T .. 2T-1 from 0: the weight on the token after the
      earlier occurrence. Equal weights on all tokens before would score `uniform`.
    - Previous token: mean of A_{i, i-1} over i = 1 .. 2T-1.

    Attributes:
        layers: float64 [N, heads, 2], in the order of SCORES; None where a layer has no map.
        copies: float64 [N, 2], loss in nats of tokens 2 .. T of the first copy, and of the second.
        period: T.
    """

    layers: list[Tensor | None]
    copies: Tensor
    period: int

    @property
    def uniform(self) -> float:
        """The induction score of equal weights."""
        return sum(1 / (row + 1) for row in range(self.period, 2 * self.period)) / self.period

    def of_head(self, layer: int, head: int) -> tuple[Interval, Interval]:
        """Both scores of a head, over sequences; layer and head count from 0."""
        scores = self.layers[layer]
        assert scores is not None, "the layer has no map"
        induction, previous = (mean_interval(scores[:, head, place].tolist()) for place in range(2))
        return induction, previous

    def best(self, score: int) -> tuple[int, int] | None:
        """Layer and head, from 0, with the highest of SCORES[score]; None where no layer has a map."""
        means = {
            (layer, head): value
            for layer, scores in enumerate(self.layers)
            if scores is not None
            for head, value in enumerate(scores[..., score].mean(dim=0).tolist())
        }
        return max(means, key=lambda place: means[place]) if means else None

    @property
    def copying(self) -> Interval:
        """Loss of the second copy less that of the first, over sequences: what the model makes of the repetition."""
        return mean_interval((self.copies[:, 1] - self.copies[:, 0]).tolist())


def repeated_tokens(sequences: int, length: int, words: Collection[int], seed: int = 0) -> Tensor:
    """Draw int64 [sequences, 2T]: T distinct words in random order, twice; T at most half of `length`."""
    known = torch.tensor(sorted(words))
    period = min(length // 2, len(known))
    generator = torch.Generator().manual_seed(seed)
    once = torch.stack([known[torch.randperm(len(known), generator=generator)[:period]] for _ in range(sequences)])
    return torch.cat([once, once], dim=1)


class DiagonalSums:
    """Adds up the induction and previous-token diagonals of maps [R, heads, 2T, 2T] over blocks of their rows."""

    def __init__(self, period: int) -> None:
        self._period = period
        self._sums: Tensor | None = None

    def add(self, block: MapBlock) -> None:
        """The next rows."""
        period = self._period
        sums = torch.stack([_diagonal(block, period - 1, period), _diagonal(block, 1, 1)], dim=-1).cpu()
        self._sums = sums if self._sums is None else self._sums + sums

    def scores(self) -> Tensor | None:
        """Return float64 [R, heads, 2], in the order of SCORES; None where no block was added."""
        counts = torch.tensor([self._period, 2 * self._period - 1], dtype=torch.float64)
        return None if self._sums is None else self._sums / counts


def _diagonal(block: MapBlock, back: int, first: int) -> Tensor:
    """Sum of A_{i, i - back} over the block's rows i from `first` on, float64 [R, heads]."""
    weights = block.weights.diagonal(block.start - back, -2, -1).double()
    begins = max(block.start, back)  # rows before it look back beyond the first token
    return weights[..., max(0, first - begins) :].sum(dim=-1)


def induction(
    decoder: Decoder,
    head: nn.Module,
    repeated: Tensor,
    label: str,
    advance: Callable[[int], object] = lambda sequences: None,
) -> InductionFindings:
    """Run tokens of :func:`repeated_tokens`, int64 [N, 2T]; the rest as :func:`..collect.collect` takes it.

    Raises:
        UserError: a loss that is no number.
    """
    period = repeated.shape[1] // 2
    layers: list[list[Tensor]] = [[] for _ in decoder.blocks]
    copies = []

    def look(layer: int, mixer: Mixer, inputs: passes.MixerInputs, sequences: int) -> None:
        sums = DiagonalSums(period)
        for block in passes.map_blocks(mixer, inputs, sequences):
            sums.add(block)
        if (scores := sums.scores()) is not None:
            layers[layer].append(scores)

    for batch in repeated.split(passes.BATCH):
        losses = token_losses(head, passes.observe(decoder, batch, look), batch)
        check_finite(losses, label)
        copies.append(torch.stack([losses[:, : period - 1].mean(dim=1), losses[:, period:].mean(dim=1)], dim=-1))
        advance(len(batch))
    return InductionFindings([torch.cat(found) if found else None for found in layers], torch.cat(copies), period)
