"""Every variant on every topology: losses of five steps, gradient norms and every gradient as in one process."""

import dataclasses
from collections.abc import Callable
from functools import cache

import pytest

from benchmarks.parity import (
    ALONE,
    BF16,
    BY_HEADS,
    CONTEXT,
    HEAVIER,
    MIXED,
    TOPOLOGIES,
    TWO_HEADS,
    UNDIVIDED,
    ZOO,
    Errors,
    Topology,
    cases,
    compare,
)
from tests.ranks import Ranks

CASES = dict(cases())
# fp32 against float64: what a few hundred roundings of 6e-8 come to. A wrong factor or a lost term is 1e-2 and more.
BOUNDS = 1e-6, 5e-6, 2e-5
"""Of losses, norms of gradients and gradients."""
# bf16 has 8 bits: a rounding is 4e-3, and a gradient goes through dozens.
BOUNDS_BF16 = 4e-3, 0.08, 0.15
TIMES = 8
"""How much more than one process in the same format a topology of the field's mixers may be off: some of them magnify
rounding a thousandfold, in one process as on many ranks, and the rounding of ranks differs."""

QUICK = tuple(topology for topology in TOPOLOGIES if topology.world_size == 2 or topology.name == "TP2xPP2")
OTHERS = tuple(topology for topology in TOPOLOGIES if topology not in QUICK)


def check(ranks: Callable[[int], Ranks], topology: Topology, model: str) -> None:
    errors = compare(ranks(topology.world_size), topology, model)
    bf16 = "bf16" in topology.flags
    loss, grad_norm, gradient = BOUNDS_BF16 if bf16 else BOUNDS
    if model in ZOO.values():
        alone = rounding(ranks, "--precision bf16" if bf16 else "", model)
        loss, grad_norm = max(loss, TIMES * alone.loss), max(grad_norm, TIMES * alone.grad_norm)
        gradient = max(gradient, TIMES * alone.gradient)
    assert errors.loss < loss, f"{topology.name}: {errors}"
    assert errors.grad_norm < grad_norm, f"{topology.name}: {errors}"
    assert errors.gradient < gradient, f"{topology.name}: {errors}"


@cache
def rounding(ranks: Callable[[int], Ranks], precision: str, model: str) -> Errors:
    """What the format does to a model in one process."""
    return compare(ranks(1), dataclasses.replace(ALONE, flags=precision), model)


@pytest.mark.parametrize(
    "case", [case if case == next(iter(MIXED)) else pytest.param(case, marks=pytest.mark.slow) for case in CASES]
)
@pytest.mark.parametrize(
    "topologies", [pytest.param(QUICK, id="quick"), pytest.param(OTHERS, id="the others", marks=pytest.mark.slow)]
)
def test_fp32(ranks: Callable[[int], Ranks], case: str, topologies: tuple[Topology, ...]) -> None:
    for topology in topologies:
        check(ranks, topology, CASES[case])


@pytest.mark.parametrize("case", MIXED)
def test_sequences_shared_by_two_ranks(ranks: Callable[[int], Ranks], case: str) -> None:
    check(ranks, CONTEXT[0], CASES[case])


@pytest.mark.parametrize("case", TWO_HEADS)
@pytest.mark.parametrize(
    "topologies",
    [pytest.param(UNDIVIDED[:1], id="CP3"), pytest.param(UNDIVIDED[1:], id="the others", marks=pytest.mark.slow)],
)
def test_sequences_shared_by_ranks_that_heads_do_not_divide_by(
    ranks: Callable[[int], Ranks], topologies: tuple[Topology, ...], case: str
) -> None:
    for topology in topologies:
        check(ranks, topology, TWO_HEADS[case])


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_shared_sequences(ranks: Callable[[int], Ranks], case: str) -> None:
    for topology in CONTEXT if case in MIXED else CONTEXT[:4]:
        check(ranks, topology, CASES[case])


@pytest.mark.parametrize("case", [next(iter(BY_HEADS)), pytest.param([*BY_HEADS][1], marks=pytest.mark.slow)])
def test_layers_by_heads(ranks: Callable[[int], Ranks], case: str) -> None:
    for topology in TOPOLOGIES:
        if topology.name in ("TP2", "PP2", "DP2 ZeRO-3"):
            check(ranks, topology, BY_HEADS[case])


@pytest.mark.parametrize("case", MIXED)
@pytest.mark.parametrize(
    "topologies", [pytest.param(BF16[:1], id="TP2"), pytest.param(BF16[1:], id="the others", marks=pytest.mark.slow)]
)
def test_bf16_of_all_variants_in_two_models(
    ranks: Callable[[int], Ranks], topologies: tuple[Topology, ...], case: str
) -> None:
    for topology in topologies:
        check(ranks, topology, CASES[case])


@pytest.mark.slow
@pytest.mark.parametrize("case", MIXED)
def test_heavier_combinations_of_all_variants_in_two_models(ranks: Callable[[int], Ranks], case: str) -> None:
    for topology in HEAVIER:
        check(ranks, topology, CASES[case])


@pytest.mark.slow
@pytest.mark.parametrize("flags", [HEAVIER[number].flags for number in (1, -2, -1)])
def test_all_together(ranks: Callable[[int], Ranks], flags: str) -> None:
    topology = next(topology for topology in HEAVIER if topology.flags == flags)
    check(ranks, topology, next(iter(MIXED.values())))


@pytest.mark.slow
def test_compiled_layers() -> None:
    ranks = Ranks(2, compiling=True)
    model = "--pattern fixedseq,standard,nonapproximate,approximate --compile"
    for flags in ("--tp 2", "--tp 2 --sequence-parallel", "--pp 2", "--cp 2"):
        check(lambda _: ranks, Topology(f"{flags}, compiled", 2, flags), model)
    ranks.close()


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES.keys() - MIXED.keys() - BY_HEADS.keys())
def test_the_rest(ranks: Callable[[int], Ranks], case: str) -> None:
    for topology in (*BF16, *HEAVIER):
        check(ranks, topology, CASES[case])
