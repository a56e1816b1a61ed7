"""The running average over rows in parts against whole rows, for scores of any size."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from deconattn.ops import prefix_scan, reference

PARTS, LENGTH = 4, 192


def by_parts(scores: Tensor, values: Tensor, ids: Tensor | None) -> Tensor:
    """Each part by itself, from the states of those before it."""
    parts = list(zip(scores.chunk(PARTS, 2), values.chunk(PARTS, 2), strict=True))
    documents = [None] * PARTS if ids is None else ids.chunk(PARTS, 1)
    states = torch.stack(
        [prefix_scan.last_state(*part, here) for part, here in zip(parts, documents, strict=True)],
    )
    mixed = []
    for number, (part, here) in enumerate(zip(parts, documents, strict=True)):
        counts = torch.arange(PARTS)[:, None] < number
        if ids is not None:
            counts = counts & torch.stack([other[:, -1] == here[:, 0] for other in documents])
        mixed.append(prefix_scan.following_average(*part, prefix_scan.merged(states, counts), here))
    return torch.cat(mixed, dim=2)


@pytest.mark.parametrize("masked", [False, True], ids=["plain", "documents"])
@pytest.mark.parametrize("offset", [0.0, -1e4, 1e4])
@pytest.mark.parametrize("scale", [1.0, 30.0, 1e4, 1e8])
def test_scores_of_any_size(scale: float, offset: float, masked: bool) -> None:
    """In fp32, where a token of another part may be all that counts; a log-weight, which is one number, is rounded."""
    generator = torch.Generator().manual_seed(2)
    scores = (torch.randn(2, 2, LENGTH, generator=generator) * scale + offset).requires_grad_()
    values, upstream = torch.randn(2, 2, 1, LENGTH, 4, generator=generator)
    upstream = torch.cat([upstream, upstream.flip(2)], dim=1)
    values.requires_grad_()
    starts = torch.zeros(2, LENGTH, dtype=torch.long)
    starts[0, [40, 130]] = starts[1, [48, 96, 100]] = 1
    ids = starts.cumsum(dim=1) if masked else None
    whole, mixed = reference.prefix_average(scores.double(), values.double(), ids), by_parts(scores, values, ids)
    rounding = 1e-6 if scale == 1e8 else 1e-6 + 3e-7 * (scale + abs(offset))
    assert_close(mixed.double(), whole, rtol=0, atol=rounding)
    ours, theirs = (
        torch.autograd.grad(result, [scores, values], upstream.to(result.dtype)) for result in (mixed, whole)
    )
    for got, wanted in zip(ours, theirs, strict=True):
        assert_close(got, wanted, rtol=0, atol=10 * rounding * max(1.0, float(wanted.abs().max())))


def test_of_no_tokens_nothing_is_left() -> None:
    states = torch.randn(3, 2, 4, 9)
    merged = prefix_scan.merged(states, torch.tensor([[True, False], [True, False], [False, False]]))
    assert_close(merged[0, :, -1], torch.logaddexp(states[0, 0, :, -1], states[1, 0, :, -1]))
    scores, values = torch.randn(2, 4, 5), torch.randn(2, 4, 5, 8)
    following = prefix_scan.following_average(scores, values, merged)
    assert_close(following[1], reference.prefix_average(scores, values)[1])
    assert not torch.allclose(following[0], reference.prefix_average(scores, values)[0])
