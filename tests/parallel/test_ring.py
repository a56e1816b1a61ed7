"""Attention over rows that ranks share by parts: what one process computes with whole rows, in both passes."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from deconattn.mixers.costs import Workload
from deconattn.mixers.standard import Standard
from deconattn.ops import reference
from deconattn.ops.backend import Backend, preferring
from deconattn.ops.documents import Documents
from deconattn.parallel.rounds import Seen, plan
from tests.hf.models import small_config
from tests.ranks import Ranks

ROWS = 2
DOCUMENTS = {
    "none": (),
    "crossing": ((0, 1, 9, 10, 21), (0, 5, 19)),  # the first token of each document, of 24
    "one of all ranks": ((0,), (0, 3)),
    "as cut": ((0, 8, 12, 16), (0, 6, 8, 12, 16, 18)),
}
"""Of rows of 24 tokens, on 2 ranks 12 each and on 3 ranks 8."""


@pytest.mark.parametrize("documents", DOCUMENTS)
@pytest.mark.parametrize("size", [2, 3])
def test_values_and_gradients_are_those_of_whole_rows(ranks: Callable[[int], Ranks], size: int, documents: str) -> None:
    for heads, key_heads, width in ((4, 4, 8), (4, 1, 4)):
        errors = ranks(size)(
            errors_of, dtype=torch.float64, starts=DOCUMENTS[documents], heads=heads, key_heads=key_heads, width=width
        )
        assert max(errors) < 1e-10, errors


def test_bf16_is_summed_in_fp32(ranks: Callable[[int], Ranks]) -> None:
    errors = ranks(3)(errors_of, dtype=torch.bfloat16, starts=(), heads=4, key_heads=2, width=8, length=96)
    assert max(errors) < 0.05, errors


def test_the_reference_backend_has_whole_rows(ranks: Callable[[int], Ranks]) -> None:
    starts = DOCUMENTS["crossing"]
    errors = ranks(3)(errors_of, dtype=torch.float64, starts=starts, heads=4, key_heads=2, width=8, backend="reference")
    assert max(errors) < 1e-10, errors


def errors_of(
    dtype: torch.dtype,
    starts: tuple[tuple[int, ...], ...],
    heads: int,
    key_heads: int,
    width: int,
    length: int = 24,
    backend: Backend = "torch",
) -> list[float]:
    """On every rank: largest errors of the mixed values and the gradients of queries, keys and values on any."""
    from deconattn.parallel.context import _Ranks

    rank, size = dist.get_rank(), dist.get_world_size()
    whole, grad = drawn(heads, key_heads, width, length)
    documents = documents_of(starts, length)
    expected = [*whole]
    mixed = reference.softmax_attention(*expected, None if documents is None else documents.ids)
    expected = [mixed, *torch.autograd.grad(mixed, expected, grad)]
    parts = [part(tensor, rank, size).to(dtype).requires_grad_() for tensor in whole]
    with preferring(backend):
        mixed = _Ranks(dist.group.WORLD, rank, size).attend(*parts, documents)
    found = [mixed, *torch.autograd.grad(mixed, parts, part(grad, rank, size).to(dtype))]
    assert all(ours.dtype == dtype for ours in found)
    errors = [
        float((ours.detach().double() - part(theirs, rank, size)).abs().max())
        for ours, theirs in zip(found, expected, strict=True)
    ]
    everybody: list[Any] = [None] * size
    dist.all_gather_object(everybody, errors)
    return [max(of_ranks) for of_ranks in zip(*everybody, strict=True)]


@pytest.mark.parametrize("size", range(2, 9))
def test_all_ranks_compute_as_much_in_every_round(size: int) -> None:
    plans = [plan(rank, size, 6, None) for rank in range(size)]
    seen = Counter[tuple[int, int, int]]()
    for tasks in zip(*(one.rounds for one in plans), strict=True):
        work = Counter[int]()
        for rank, task in ((rank, task) for rank, one in enumerate(tasks) for task in one if task.at == rank):
            assert any(task == theirs for theirs in tasks[task.other])
            for some in task.seen:
                work[rank] += some.queries * some.keys
                seen.update((task.later, query + task.span.start, task.earlier) for query in range(some.queries))
        assert len(set(work.values())) == 1 and len(work) == size
    pairs = [(later, earlier) for later in range(size) for earlier in range(later)]
    assert seen == Counter((later, query, earlier) for later, earlier in pairs for query in range(6))


def test_what_no_query_sees_is_left_out() -> None:
    documents = documents_of(((0, 6, 9), (0, 6, 12)), 18)
    last = plan(2, 3, 6, documents)
    assert [(task.later, task.earlier, task.seen) for tasks in last.rounds for task in tasks] == [
        (2, 1, (Seen(slice(0, 1), 6, 3),))
    ]
    assert plan(0, 3, 6, documents).rounds == ((),)


@pytest.mark.parametrize(("size", "length"), [(2, 6), (2, 10), (3, 6)])
def test_what_is_sent_is_as_much_as_is_said(ranks: Callable[[int], Ranks], size: int, length: int) -> None:
    config = small_config("standard", num_attention_heads=5, num_key_value_heads=5, head_dim=8)
    for dtype in (torch.float32, torch.bfloat16):
        work = Workload(rows=ROWS, length=length, bytes_per_element=dtype.itemsize)
        exchange = Standard.context_exchange
        said = [
            count(Standard, config, work, size) * dtype.itemsize
            for count in (exchange.sent_elements, exchange.sent_backward)
        ]
        assert ranks(size)(sent_bytes, dtype=dtype, heads=5, key_heads=5, length=length) == said


def sent_bytes(dtype: torch.dtype, heads: int, key_heads: int, length: int) -> list[int]:
    """On every rank: bytes sent in the forward and in the backward pass by the rank that sends most."""
    from deconattn.parallel import ring

    started, sent = dist.batch_isend_irecv, Counter[str]()

    def counted(operations: list[dist.P2POp]) -> list[dist.Work]:
        sent[passing] += sum(one.tensor.nbytes for one in operations if one.op is dist.isend)
        return started(operations)

    rank, size = dist.get_rank(), dist.get_world_size()
    whole, grad = drawn(heads, key_heads, 8, length)
    parts = [part(tensor, rank, size).to(dtype).requires_grad_() for tensor in whole]
    dist.batch_isend_irecv = counted
    try:
        passing = "forward"
        mixed = ring.attend(*parts, ring.Ring(dist.group.WORLD, rank, size), None)
        passing = "backward"
        mixed.backward(part(grad, rank, size).to(dtype))
    finally:
        dist.batch_isend_irecv = started
    everybody: list[Any] = [None] * size
    dist.all_gather_object(everybody, sent)
    return [max(counts[name] for counts in everybody) for name in ("forward", "backward")]


def drawn(heads: int, key_heads: int, width: int, length: int) -> tuple[list[Tensor], Tensor]:
    """Draw queries, keys and values of whole rows in float64, and a gradient."""
    generator = torch.Generator().manual_seed(0)
    shapes = (heads, 8), (key_heads, 8), (key_heads, width), (heads, width)
    *whole, grad = (torch.randn(ROWS, n, length, x, generator=generator, dtype=torch.float64) for n, x in shapes)
    return [tensor.requires_grad_() for tensor in whole], grad


def part(whole: Tensor, rank: int, size: int) -> Tensor:
    return whole.detach().chunk(size, dim=2)[rank].clone()


def documents_of(starts: tuple[tuple[int, ...], ...], length: int) -> Documents | None:
    if not starts:
        return None
    begins = torch.zeros(len(starts), length, dtype=torch.long)
    for row, firsts in enumerate(starts):
        begins[row, list(firsts)] = 1
    indices = torch.arange(length).expand_as(begins)
    return Documents(begins.cumsum(dim=1), indices - (indices * begins).cummax(dim=1).values)
