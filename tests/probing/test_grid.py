"""Grids: what a request means, and what it may not say."""

import dataclasses

import pytest

from deconattn.errors import UserError
from deconattn.model.flops import count_parameters
from deconattn.probing.grid import Size, costs, make_grid, parse_ladders, spelt_out
from deconattn.probing.request import Request

SMALL = Request(tasks=("memorise?facts=4,2",), variants=("standard", "mlp"), seeds=3, lr=(1e-3, 1e-2))


def grid_of(**changes):
    return make_grid(spelt_out(dataclasses.replace(SMALL, **changes)))


def test_a_ladder_has_its_levels_in_order_and_reads_its_own_words():
    (ladder,) = parse_ladders("mqar?pairs=8,4&alphabet=16")
    assert ladder.levels == (4, 8)
    assert "alphabet=16" in ladder.settings
    assert "pairs" not in ladder.settings
    assert parse_ladders(ladder.words) == [ladder]
    assert ladder.longest == max(task.length for task in ladder.tasks)


def test_levels_that_samples_do_not_tell_apart_are_trained_apart():
    assert [ladder.levels for ladder in parse_ladders("previous-token?gap=1,2")] == [(1,), (2,)]


def test_the_rates_are_swept_on_the_first_seed():
    grid = grid_of()
    group = grid.groups[0]
    assert [(cell.seed, cell.lr) for cell in grid.sweep(group)] == [(1, 1e-3), (1, 1e-2)]
    assert [(cell.seed, cell.lr) for cell in grid.others(group, 1e-2)] == [(2, 1e-2), (3, 1e-2)]
    assert grid.models(grid.groups) == 2 * 4


def test_standard_attention_has_one_pattern():
    patterns = [(group.variant, group.pattern) for group in grid_of(patterns=("uniform", "even")).groups]
    assert patterns == [("standard", "uniform"), ("mlp", "uniform"), ("mlp", "even")]


def test_models_have_equally_many_parameters():
    variants = ("standard", "mlp", "approximate", "rndemb")
    counts = [count_parameters(group.model_config()).total for group in grid_of(variants=variants).groups]
    assert max(counts) - min(counts) < 0.01 * max(counts)


def test_names_of_files_tell_cells_apart():
    grid = grid_of(tasks=("mqar?pairs=2", "mqar?pairs=4"), patterns=("1:1", "even"))
    cells = [cell for group in grid.groups for cell in grid.sweep(group)]
    assert len({cell.file for cell in cells}) == len(cells)


def test_tasks_that_share_a_difficulty_are_refused():
    with pytest.raises(UserError, match=r"facts=2,4 and .*facts=4,8 share memorise.*facts=4.*: give each an --out"):
        grid_of(tasks=("memorise?facts=2,4", "memorise?facts=4,8"))
    assert len(grid_of(tasks=("memorise?facts=2,4", "memorise?facts=8")).groups) == 4


def test_shards_are_dealt_by_cost():
    small, large = costs(grid_of(variants=("mlp",), sizes=("32x1", "64x2")))
    assert large == 4 * small


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"tasks": ("mqr",)}, "'mqr'"),
        ({"tasks": ("mqar?pairs=4,x",)}, "'x'"),
        ({"tasks": ("mqar", "mqar")}, "--tasks mqar is given twice"),
        ({"tasks": ()}, "--tasks names nothing"),
        ({"variants": ("nosuch",)}, "'nosuch'"),
        ({"patterns": ("sideways",)}, "'sideways'"),
        ({"patterns": ("mlp,standard",)}, "--patterns mlp,standard"),
        ({"sizes": ("64",)}, "--sizes 64"),
        ({"sizes": ("48x2",)}, "--sizes 48x2"),
        ({"seeds": 0}, "--seeds 0"),
        ({"steps": 0}, "--steps 0"),
        ({"batch_size": 0}, "--batch-size 0"),
        ({"lr": (0.0,)}, "--lr 0"),
        ({"lr": ()}, "--lr names nothing"),
    ],
)
def test_what_cannot_be_is_one_line(changes, named):
    with pytest.raises(UserError, match=named.replace("?", r"\?")) as error:
        grid_of(**changes)
    assert "\n" not in str(error.value)


def test_narrow_models_have_one_head():
    assert Size.parse("16x3") == Size(16, 3)
    config = grid_of(sizes=("16x3",)).groups[0].model_config()
    assert (config.num_attention_heads, config.head_dim, config.num_hidden_layers) == (1, 16, 3)
    assert grid_of(sizes=("96x1",)).groups[0].model_config().num_attention_heads == 3
