"""The running average of `nonapproximate`: all that it needs of earlier tokens (paper, section 3.1).

Of a row and head: the average of the values so far weighted by exp(score), [R, heads, head_dim], and the logarithm of
the weights' sum, [R, heads]. A token moves the average towards its value by its share of the sum. Both are at least
fp32.
"""

import torch
from torch import Tensor

from deconattn.ops.precision import at_least_fp32, outside_autocast
from deconattn.ops.prefix_average import prefix_average

NOTHING = -1e30
"""The log-sum of no tokens: finite, so that the difference of two is a number; beside any score it counts nothing."""


@outside_autocast()
def step(scores: Tensor, values: Tensor, average: Tensor, log_sum: Tensor) -> tuple[Tensor, Tensor]:
    """The state after one more token.

    Args:
        scores: [R, heads]
        values: [R, heads, head_dim]
    """
    total = torch.logaddexp(log_sum, scores)
    return torch.lerp(average, at_least_fp32(values), (scores - total).exp()[..., None]), total


@outside_autocast()
def summarise(scores: Tensor, values: Tensor, real: Tensor | None) -> tuple[Tensor, Tensor]:
    """The state after T tokens and nothing before them.

    Args:
        scores: [R, heads, T]
        values: [R, heads, T, head_dim]
        real: bool [R, T] or None: the tokens that count.
    """
    if real is not None:
        scores = scores.masked_fill(~real[:, None], NOTHING)
    average = (scores.softmax(dim=-1)[..., None, :] @ at_least_fp32(values)).squeeze(-2)
    return average, scores.logsumexp(dim=-1)


def merge(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The state of both stretches of tokens."""
    total = torch.logaddexp(first[1], second[1])
    return torch.lerp(first[0], second[0], (second[1] - total).exp()[..., None]), total


@outside_autocast()
def continued_average(scores: Tensor, values: Tensor, average: Tensor, log_sum: Tensor) -> Tensor:
    """The average at each of T tokens that follow the state: [R, heads, T], [R, heads, T, x] -> [R, heads, T, x]."""
    sums = scores.logcumsumexp(dim=-1)
    share = (sums - torch.logaddexp(log_sum[..., None], sums)).exp()[..., None]
    return torch.lerp(average[..., None, :], prefix_average(scores, at_least_fp32(values)), share).to(values.dtype)
