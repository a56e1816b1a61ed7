"""The pipeline's partition of the layers."""

import itertools
import random
from dataclasses import replace

import pytest

from deconattn.config.flags import model_config
from deconattn.config.presets import size_defaults
from deconattn.errors import UserError
from deconattn.layers.config import ModelConfig
from deconattn.parallel.stages import balanced_spans, stage_spans


def build_config(size: str, variant: str = "standard", pattern: str = "uniform") -> ModelConfig:
    flags = replace(size_defaults(size).model, variant=variant, pattern=pattern)
    return model_config(flags, 50277, 2048)


def sums(spans: tuple[range, ...], costs: list[int], last_extra: int) -> list[int]:
    totals = [sum(costs[layer] for layer in span) for span in spans]
    totals[-1] += last_extra
    return totals


def test_the_largest_stage_is_the_smallest_of_all_partitions():
    draw = random.Random(0)
    for _ in range(200):
        count = draw.randint(1, 9)
        costs = [draw.randint(1, 20) for _ in range(count)]
        last_extra = draw.choice([0, draw.randint(0, 60)])
        stages = draw.randint(1, count)
        spans = balanced_spans(costs, last_extra, stages)
        possible = []
        for cuts in itertools.combinations(range(1, count), stages - 1):
            ends = (*cuts, count)
            all_spans = tuple(range(start, stop) for start, stop in zip((0, *cuts), ends, strict=True))
            totals = sums(all_spans, costs, last_extra)
            possible.append((max(totals), sum(total**2 for total in totals), ends))
        totals = sums(spans, costs, last_extra)
        ends = tuple(span.stop for span in spans)
        assert (max(totals), sum(total**2 for total in totals), ends) == min(possible)


@pytest.mark.parametrize("stages", [1, 2, 3, 5, 24])
def test_stages_are_consecutive_and_cover_every_layer(stages: int):
    spans = stage_spans(build_config("500m", "fixedseq", "1:3"), stages, 2048)
    assert len(spans) == stages
    assert all(len(span) > 0 for span in spans)
    assert list(itertools.chain(*spans)) == list(range(24))
    assert spans == stage_spans(build_config("500m", "fixedseq", "1:3"), stages, 2048)


def test_the_head_is_weighed():
    first, last = stage_spans(build_config("70m"), 2, 2048)
    assert (len(first), len(last)) == (5, 1)  # the head costs as much as six layers
    deep, shallow = stage_spans(build_config("1.7b"), 2, 2048)
    assert len(deep) > len(shallow) > 1


def test_more_stages_than_layers_is_one_line():
    with pytest.raises(UserError, match=r"^--pp 7 is more than the model's 6 layers: use --pp 6 at most$"):
        stage_spans(build_config("70m"), 7, 2048)
