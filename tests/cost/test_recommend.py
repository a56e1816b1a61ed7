"""The recommended topology fits, and nothing simpler does."""

from dataclasses import replace

import pytest

from deconattn.config.flag_groups import EngineFlags
from deconattn.config.flags import TrainingFlags, model_config
from deconattn.config.presets import size_defaults
from deconattn.cost.job import Job
from deconattn.cost.memory import peak
from deconattn.cost.recommend import Recommendation, fits, recommend
from deconattn.errors import UserError


def advise(size: str, ranks: int, gib: float, **engine: object) -> tuple[TrainingFlags, Recommendation]:
    flags = replace(size_defaults(size), engine=EngineFlags(**{"precision": "bf16", **engine}))  # type: ignore[arg-type]
    model = model_config(flags.model, 50277, flags.data.seq_len)
    return flags, recommend(model, flags, ranks, gib)


@pytest.mark.parametrize(("size", "ranks", "gib"), [("70m", 1, 24), ("1.7b", 8, 24), ("1.7b", 8, 16), ("1.7b", 4, 80)])
def test_it_fits(size: str, ranks: int, gib: float):
    flags, found = advise(size, ranks, gib)
    model = model_config(flags.model, 50277, flags.data.seq_len)
    assert fits(peak(Job.of(model, found.flags, ranks, gpu_memory=gib)), gib)
    assert f"{found.peak.memory.total / 2**30:.1f} of {gib:g} GiB" in found.reason


def test_a_large_gpu_needs_nothing_special():
    _, found = advise("1.7b", 64, 192)
    assert found.command == "--zero 1 --micro-batch-size 4"
    assert found.reason.endswith("nothing is simpler")


def test_smaller_gpus_need_more():
    orders = []
    for gib in (80, 24, 16, 14):
        job = advise("1.7b", 8, gib)[1].job
        orders.append((job.tp, job.pp, job.zero))
    assert orders == sorted(orders)
    assert orders[0] < orders[-1]


def test_where_nothing_fits_the_least_is_told():
    with pytest.raises(UserError, match=r"^nothing fits 4 GiB on 2 GPUs: the least is .* use more GPUs"):
        advise("1.7b", 2, 4)


def test_a_batch_that_cannot_be_shared_out_is_told():
    with pytest.raises(UserError, match="use a --global-batch-size that is a multiple of 7"):
        advise("70m", 7, 80)
