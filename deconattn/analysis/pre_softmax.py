"""Distribution of pre-softmax activations, from a running histogram and running moments."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

A_DECADE = 32
_SMALLEST, _LARGEST = -4, 6
"""Powers of ten between which bins are logarithmic; what is smaller lies in one bin a sign."""


def bin_edges() -> Tensor:
    """float64 [edges], increasing: logarithmic on both sides of zero, A_DECADE a factor of ten, which is 7 % a bin."""
    powers = torch.arange(_SMALLEST * A_DECADE, _LARGEST * A_DECADE + 1, dtype=torch.float64) / A_DECADE
    positive = 10**powers
    return torch.cat([-positive.flip(0), torch.zeros(1, dtype=torch.float64), positive])


@dataclass(frozen=True)
class Distribution:
    """Distribution of `count` activations; all but the quantiles are exact.

    Attributes:
        std: standard deviation, divided by the count.
        bins: int64 [edges + 1], how many lie below the first of :func:`bin_edges`, between each two, and not below the
            last; one that equals an edge lies above it.
    """

    count: int
    mean: float
    std: float
    minimum: float
    maximum: float
    bins: Tensor

    def quantile(self, share: float) -> float:
        """The activation that a `share` of all do not exceed, within a bin; 0 and 1 give the minimum and maximum."""
        infinite = torch.tensor([math.inf], dtype=torch.float64)
        edges = torch.cat([-infinite, bin_edges(), infinite]).clamp(self.minimum, self.maximum)
        below = torch.cat([torch.zeros(1, dtype=torch.int64), self.bins.cumsum(0)]).double() / self.count
        place = int(torch.searchsorted(below[1:].contiguous(), share).clamp(max=len(self.bins) - 1))
        within = (share - below[place]) / (below[place + 1] - below[place]) if self.bins[place] else 0.0
        return float(edges[place] + (edges[place + 1] - edges[place]) * within)


class ActivationSums:
    """Adds activations up: count, moments, extremes and a histogram.

    Attributes:
        finite: whether all were.
    """

    def __init__(self) -> None:
        self._edges = bin_edges()
        self._bins = torch.zeros(len(self._edges) + 1, dtype=torch.int64)
        self._count = 0
        self._mean = self._squares = 0.0
        self._minimum, self._maximum = math.inf, -math.inf
        self.finite = True

    def add(self, scores: Tensor) -> None:
        """Scores of any shape; -inf is none."""
        present = scores[scores != -math.inf].double()
        if not present.numel():
            return
        if not present.isfinite().all():
            self.finite = False
            return
        # Chan's update: the mean of squares less the square of the mean would lose what a large mean hides.
        count, mean = present.numel(), float(present.mean())
        total, shift = self._count + count, mean - self._mean
        self._squares += float((present - mean).square().sum()) + shift**2 * self._count * count / total
        self._mean += shift * count / total
        self._count = total
        self._minimum = min(self._minimum, float(present.min()))
        self._maximum = max(self._maximum, float(present.max()))
        self._edges = self._edges.to(present.device)
        places = torch.bucketize(present, self._edges, right=True)
        self._bins += torch.bincount(places, minlength=len(self._bins)).cpu()

    def distribution(self) -> Distribution | None:
        """Return the distribution; None where nothing was added."""
        if not self._count:
            return None
        spread = math.sqrt(self._squares / self._count)
        return Distribution(self._count, self._mean, spread, self._minimum, self._maximum, self._bins)
