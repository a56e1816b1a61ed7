"""Greedy and swaps against all hybrids of a made-up loss; patterns, random draws, budgets and the flag's form."""

import dataclasses
from itertools import pairwise, product
from math import comb

import pytest

from deconattn.config.pattern import layer_variants
from deconattn.cost.generation import cache_bytes
from deconattn.errors import UserError
from deconattn.layers.config import ModelConfig
from deconattn.surgery.assignments import PATTERNS, Table, all_keeping, as_flag, drawn, kept_layers, named
from deconattn.surgery.budget import read_budget
from deconattn.surgery.choice import Kept, Within, choose

OWN = ("standard",) * 6
KNOWN = ("standard", "mlp", "nonapproximate", "fixedseq")
INCREASES = {
    "mlp": (0.9, 0.1, 0.3, 0.2, 0.5, 0.8),
    "nonapproximate": (0.4, 0.2, 0.25, 0.3, 0.1, 0.7),
}
TABLE = Table(OWN, {(layer, name): of[layer] for name, of in INCREASES.items() for layer in range(6)})
CONFIG = ModelConfig(
    vocab_size=128,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=6,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=64,
    layer_variants=OWN,
)


def interacting(assignment: tuple[str, ...]) -> float:
    """Increases that add up, but for neighbours of which both are replaced."""
    replaced = [variant != "standard" for variant in assignment]
    both = sum(one and other for one, other in pairwise(replaced))
    return 2 + TABLE.sum(assignment) + 0.15 * both


def test_the_table_chooses_the_least_harmful() -> None:
    assert TABLE.best(0) == "nonapproximate" and TABLE.best(1) == "mlp"
    assert TABLE.replaceable() == [1, 4, 3, 2, 0, 5]
    assert Kept(3, OWN).start(TABLE) == ("standard", "mlp", "standard", "mlp", "nonapproximate", "standard")
    assert TABLE.sum(Kept(3, OWN).start(TABLE)) == pytest.approx(0.4)


@pytest.mark.parametrize("keep", [0, 2, 3, 5])
def test_swaps_find_the_best_of_all(keep: int) -> None:
    options = product(*[("standard", "mlp", "nonapproximate")] * 6)
    best = min(interacting(one) for one in options if one.count("standard") == keep)
    choice = choose(TABLE, Kept(keep, OWN), interacting, swaps=200)
    assert interacting(choice.found) == pytest.approx(best)
    assert choice.found.count("standard") == keep
    losses = [step.loss for step in choice.steps if step.taken]
    assert losses == sorted(losses, reverse=True) and losses[-1] == interacting(choice.found)
    assert len({step.assignment for step in choice.steps}) == len(choice.steps)


def test_no_more_is_measured_than_was_allowed() -> None:
    measured = []

    def measure(assignment: tuple[str, ...]) -> float:
        measured.append(assignment)
        return interacting(assignment)

    assert len(choose(TABLE, Kept(3, OWN), measure, swaps=5).steps) == 6
    assert len(measured) == 6
    assert len(choose(TABLE, Kept(3, OWN), measure, swaps=0).steps) == 1


def test_a_layer_without_replacement_stays() -> None:
    table = Table(OWN, {place: increase for place, increase in TABLE.increases.items() if place[0] != 1})
    assert table.best(1) is None and 1 not in table.replaceable()
    for choice in (choose(table, Kept(keep, OWN), interacting, swaps=50).found for keep in (1, 3)):
        assert choice[1] == "standard"


@pytest.mark.parametrize("budget", ["cache=0.5", "flops=0.95", "decode=0.9"])
def test_a_budget_is_kept_and_spent(budget: str) -> None:
    limit = Within(read_budget(budget, 4096, 8, "h100"), CONFIG, OWN)
    choice = choose(TABLE, limit, interacting, swaps=60)
    assert limit.fits(choice.found) and limit.fits(choice.steps[0].assignment)
    options = [one for one in product(*[("standard", "mlp", "nonapproximate")] * 6) if limit.fits(one)]
    assert interacting(choice.found) <= interacting(choice.steps[0].assignment)
    # Within a tenth of the whole range of what all hybrids within the budget lose.
    losses = sorted(map(interacting, options))
    assert interacting(choice.found) <= losses[0] + 0.1 * (losses[-1] - losses[0])


def test_costs_are_the_cost_models() -> None:
    budget = read_budget("cache=0.5", 1000, 3, "a100")
    half = ("mlp",) * 3 + ("standard",) * 3
    wide = dataclasses.replace(CONFIG, max_position_embeddings=1000)
    assert budget.cost(CONFIG, OWN) == cache_bytes(wide, 3, 1000, 2)
    assert budget.part(CONFIG, half, OWN) == 0.5 and budget.fits(CONFIG, half, OWN)
    decode = [read_budget("decode=0.5", length, 8, "h100").part(CONFIG, half, OWN) for length in (64, 4096, 10**6)]
    assert decode == sorted(decode, reverse=True) and decode[0] < 1 and decode[-1] == pytest.approx(0.5, abs=0.02)


def test_what_no_variant_reaches_is_said() -> None:
    limit = Within(read_budget("flops=0.1", 64, 1, "h100"), CONFIG, OWN)
    with pytest.raises(UserError, match="--budget flops=0.1: these variants reach 0.824 at best"):
        limit.start(TABLE)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("flop=0.5", "did you mean 'flops'"),
        ("flops", "give flops, cache or decode"),
        ("cache=2", "between 0 and 1"),
        ("cache=half", "between 0 and 1"),
    ],
)
def test_budgets_that_cannot_be(text: str, says: str) -> None:
    with pytest.raises(UserError, match=f"--budget {text}.*{says}"):
        read_budget(text, 64, 1, "h100")
    with pytest.raises(UserError, match="--budget-gpu tpu: give one of a100, h100"):
        read_budget("cache=0.5", 64, 1, "tpu")


def test_the_papers_patterns_keep_their_layers_and_take_the_tables_variants() -> None:
    found = dict(named(TABLE))
    assert tuple(found) == PATTERNS
    for name, assignment in found.items():
        expected = layer_variants(name, "mlp", 6, KNOWN)
        for layer, (variant, one) in enumerate(zip(assignment, expected, strict=True)):
            assert variant == ("standard" if one == "standard" else TABLE.best(layer))


def test_random_draws_differ_and_are_the_seeds() -> None:
    found = drawn(TABLE, 3, 8, seed=1)
    assert len(set(found)) == 8 and all(len(kept_layers(one, OWN)) == 3 for one in found)
    assert found == drawn(TABLE, 3, 8, seed=1) != drawn(TABLE, 3, 8, seed=2)
    assert len(drawn(TABLE, 1, 20, seed=0)) == comb(6, 1)
    assert len(set(all_keeping(TABLE, 2))) == comb(6, 2)


@pytest.mark.parametrize(
    ("assignment", "flag"),
    [
        (("mlp", "mlp", "standard", "fixedseq"), "2*mlp,standard,fixedseq"),
        (("mlp",) * 4, "4*mlp"),
        (("mlp",), "1*mlp"),
    ],
)
def test_an_assignment_is_a_pattern(assignment: tuple[str, ...], flag: str) -> None:
    assert as_flag(assignment) == flag
    assert layer_variants(flag, "mlp", len(assignment), KNOWN) == assignment
