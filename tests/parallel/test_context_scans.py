"""Exchanges of states under context parallelism: values, gradients and bytes of what ranks make of their parts."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from benchmarks.parity import ALONE, Errors, Topology, compare
from deconattn.mixers import Mixer, Workload, approximate, mixer_class
from deconattn.mixers.exchange import exchange_of
from tests.mixers.models import BASE
from tests.mixers.test_contract import build_mixer
from tests.parallel.context_threads import Meeting, Thread, mixed_by_ranks, shared_context
from tests.parallel.test_parity import TIMES
from tests.ranks import Ranks

AVERAGES = ("nonapproximate", "average")
RECURRENT = ("linear", "gla", "retention", "mamba2", "based", "deltanet", "gated-deltanet", "kda")
SHORT = ("conv", "shift")
ROWS, LENGTH = 3, 192
"""Rows of several chunks of the prefix average."""
HEADS = {"mha": {"num_key_value_heads": 4}, "gqa": {"num_key_value_heads": 2, "qk_norm": True}}


def borders(*starts: int) -> Tensor:
    """Document ids of a row in which new documents begin at these tokens."""
    ids = torch.zeros(LENGTH, dtype=torch.long)
    ids[list(starts)] = 1
    return ids.cumsum(dim=0)


DOCUMENTS: dict[str, Tensor | None] = {
    "one a row": None,
    # Over several parts and within one; at the borders of parts, so that none is crossed; many short ones.
    "documents": torch.stack([borders(5, 150, 160), borders(48, 96, 144), borders(*range(3, LENGTH, 7))]),
    "whole rows": torch.zeros(ROWS, LENGTH, dtype=torch.long),
}


def inputs(dtype: torch.dtype = torch.double) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    hidden, upstream = torch.randn(2, ROWS, LENGTH, BASE.hidden_size, generator=generator, dtype=torch.double).to(dtype)
    return hidden.requires_grad_(), upstream


def one_process(mixer: Mixer, hidden: Tensor, document_ids: Tensor | None) -> Tensor:
    context = shared_context(mixer.config, hidden, document_ids, Thread(Meeting(1), 0))
    return mixer(hidden, None, context.whole())


def check(mixer: Mixer, hidden: Tensor, upstream: Tensor, document_ids: Tensor | None, size: int, bound: float) -> int:
    """Compare with one process, and return the bytes that a rank has sent."""
    whole = one_process(mixer, hidden, document_ids)
    mixed, sent = mixed_by_ranks(mixer, hidden, None, document_ids, size)
    tensors = {"hidden": hidden, **dict(mixer.named_parameters())}
    pairs = {"mixed": (mixed, whole)}
    ours, theirs = (torch.autograd.grad(result, list(tensors.values()), upstream) for result in (mixed, whole))
    pairs |= dict(zip(tensors, zip(ours, theirs, strict=True), strict=True))
    for name, (got, wanted) in pairs.items():
        scale = bound * float(wanted.detach().abs().max())
        assert_close(got, wanted, rtol=0, atol=scale, msg=lambda m, n=name: f"{n}: {m}")
    assert len(set(sent)) == 1
    return sent[0]


NARROW = "approximate,nonapproximate,average,approximate --num-attention-heads 8"
"""Heads so narrow that the sums of `approximate` are less than the tokens."""


def cases() -> Iterator[Any]:
    """Variant, ranks, heads and documents; of the zoo most are slow."""
    for case in itertools.product((*AVERAGES, "approximate", *RECURRENT, *SHORT), (2, 3, 4), HEADS, DOCUMENTS):
        ours = case[0] in ("nonapproximate", "approximate")
        quick = ours or case[1:] in ((2, "mha", "documents"), (4, "gqa", "one a row"))
        yield pytest.param(*case, marks=() if quick else pytest.mark.slow)


@pytest.mark.parametrize(("variant", "size", "heads", "documents"), cases())
def test_parts_are_one_process(variant: str, size: int, heads: str, documents: str) -> None:
    mixer = build_mixer(variant, **HEADS[heads])
    sent = check(mixer, *inputs(), DOCUMENTS[documents], size, 1e-12)
    work = Workload(ROWS, LENGTH, bytes_per_element=8)
    cls = mixer_class(variant)
    assert sent == 8 * exchange_of(cls).sent_elements(cls, replace(BASE, **HEADS[heads]), work, size)


@pytest.mark.parametrize(("size", "scanned"), [(2, True), (4, False)])
def test_approximate_sends_what_is_less(size: int, scanned: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def counted(*operands: object) -> Tensor:
        calls.append(1)
        return shared_attention(*operands)

    shared_attention = approximate.shared_attention
    monkeypatch.setattr(approximate, "shared_attention", counted)
    mixer = build_mixer("approximate", **HEADS["mha"])
    check(mixer, *inputs(), DOCUMENTS["documents"], size, 1e-12)
    assert len(calls) == scanned * size
    # Longer rows change nothing of the sums, and half the bytes of an element make theirs count twice.
    sent = exchange_of(mixer_class("approximate")).sent_elements
    config, longer = replace(BASE, **HEADS["mha"]), Workload(ROWS, 1 << 20, bytes_per_element=2)
    sums = (size - 1) * ROWS * config.num_key_value_heads * 45 * 9
    assert sent(mixer_class("approximate"), config, longer, size) == 2 * sums


@pytest.mark.parametrize("variant", [*AVERAGES, "approximate", *RECURRENT, *SHORT])
def test_bf16_is_as_near_as_one_process(variant: str) -> None:
    exact = build_mixer(variant, **HEADS["gqa"])
    hidden, _ = inputs()
    ids = DOCUMENTS["documents"]
    wanted = one_process(exact, hidden, ids)
    mixer, half = build_mixer(variant, **HEADS["gqa"]).bfloat16(), hidden.bfloat16()
    alone = one_process(mixer, half, ids)
    by_ranks, sent = mixed_by_ranks(mixer, half, None, ids, 2)
    errors = [float((mixed.double() - wanted).detach().norm()) for mixed in (by_ranks, alone)]
    assert errors[0] < 1.05 * errors[1]
    # States have four bytes a number.
    work, cls = Workload(ROWS, LENGTH, bytes_per_element=2), mixer_class(variant)
    assert sent == [2 * exchange_of(cls).sent_elements(cls, mixer.config, work, 2)] * 2


def test_parts_shorter_than_a_convolution_are_gathered() -> None:
    mixer = build_mixer("mamba2")
    hidden, upstream = (tensor[:, :8] for tensor in inputs())
    sent = check(mixer, hidden, upstream, None, 4, 1e-12)
    assert sent == 8 * 3 * hidden[:, :2].numel()
    work = Workload(ROWS, 8, bytes_per_element=8)
    assert sent == 8 * exchange_of(type(mixer)).sent_elements(type(mixer), mixer.config, work, 4)


@pytest.mark.parametrize(
    ("layers", "flags"),
    [
        (NARROW, "--cp 2"),
        *(
            pytest.param(layers, flags, marks=pytest.mark.slow)
            for layers in (
                NARROW,
                "gla,standard,retention,standard",
                "mamba2,standard,kda,standard",
                "linear,standard,based,standard",
                "conv,gated-deltanet,standard,shift",
            )
            for flags in ("--cp 4", "--tp 2 --sequence-parallel --cp 2", "--cp 2 --zero 3 --recompute mixer")
        ),
    ],
)
def test_trainings_on_ranks_of_their_own(ranks: Callable[[int], Ranks], layers: str, flags: str) -> None:
    """Layers that exchange states; benchmarks/parity.py has the rest."""
    model = f"--doc-mask --micro-batch-size 2 --pattern {layers}"
    size = 2 if flags == "--cp 2" else 4
    errors = compare(ranks(size), Topology(flags, size, flags), model)
    # Some recurrent layers on each other magnify rounding, in one process as on many ranks.
    alone = compare(ranks(1), ALONE, model) if size == 4 else Errors(0, 0, 0, "")
    assert errors.loss < max(1e-6, TIMES * alone.loss), errors
    assert errors.gradient < max(2e-5, TIMES * alone.gradient), errors
