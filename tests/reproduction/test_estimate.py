"""What runs cost, and flags that launch.sh would refuse."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from deconattn.config.flags import model_config
from deconattn.config.presets import size_defaults
from deconattn.errors import UserError
from deconattn.model.flops import step_flops
from deconattn.reproduction.estimate import estimate_runs
from deconattn.reproduction.plans import Request, make_plan

TINY = Request(table=("1",), size=("tiny",), variants=("fixedseq",), train="--precision fp32")


def test_estimates_are_those_of_the_cost_model() -> None:
    runs = make_plan(TINY).runs
    found = estimate_runs(TINY, runs)
    defaults = size_defaults("tiny")
    hybrid = dataclasses.replace(defaults.model, variant="fixedseq", pattern="even")
    micro_batches = defaults.optimization.global_batch_size // defaults.optimization.micro_batch_size
    one = step_flops(model_config(hybrid, 2048, 256), defaults.optimization.micro_batch_size, 256, micro_batches)
    estimate = found["tiny-fixedseq-even"]
    assert (estimate.flops, estimate.tokens, estimate.length) == (300 * one, 300 * 16 * 256, 256)
    assert len({estimate.flops for estimate in found.values()}) == 3
    assert len({estimate.parameters for estimate in found.values()}) == 1


def test_a_corpus_gives_the_vocabulary(corpus: Path) -> None:
    request = dataclasses.replace(TINY, data=(f"{corpus}:2",))
    runs = make_plan(request).runs
    assert estimate_runs(request, runs)[runs[0].name].parameters < estimate_runs(TINY, runs)[runs[0].name].parameters


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variants": ("fixedsec",)}, "did you mean 'fixedseq'"),
        ({"patterns": ("evn",)}, "unknown pattern 'evn'"),
        ({"size": ("71m",)}, "unknown size '71m'"),
        ({"train": "--no-such-flag 1"}, "no-such-flag"),
        ({"data": ("nowhere",)}, "nowhere: no such folder"),
        ({"datasets": Path("nowhere")}, "--datasets nowhere: no such folder"),
    ],
)
def test_what_a_command_would_refuse_is_refused_before_anything_runs(changes: dict[str, Any], message: str) -> None:
    request = dataclasses.replace(TINY, **changes)
    with pytest.raises(UserError, match=message):
        estimate_runs(request, make_plan(request).runs)
