"""What is recommended fits, and nothing that fits is faster."""

from dataclasses import replace

import pytest

from deconattn.config.flag_groups import EngineFlags
from deconattn.config.flags import TrainingFlags, model_config
from deconattn.config.presets import size_defaults
from deconattn.cost.cluster import Cluster
from deconattn.cost.job import Job
from deconattn.cost.memory import peak
from deconattn.cost.recommend import LARGEST_BUBBLE, Recommendation, fits, recommend
from deconattn.cost.report import advice
from deconattn.cost.step_time import step_time
from deconattn.errors import UserError

H100 = Cluster.of("h100", 8, None, 5)


def advise(
    size: str, ranks: int, gib: float, length: int | None = None, batch: int | None = None, **dimensions: int
) -> tuple[TrainingFlags, list[Recommendation]]:
    flags = replace(size_defaults(size), engine=EngineFlags(precision="bf16"))
    flags = replace(
        flags,
        model=replace(flags.model, **dimensions),
        data=replace(flags.data, seq_len=length or flags.data.seq_len),
        optimization=replace(flags.optimization, global_batch_size=batch or flags.optimization.global_batch_size),
    )
    model = model_config(flags.model, 50277, flags.data.seq_len)
    return flags, recommend(model, flags, ranks, gib, H100)


@pytest.mark.parametrize(("size", "ranks", "gib"), [("70m", 1, 24), ("1.7b", 8, 24), ("1.7b", 8, 16), ("1.7b", 4, 80)])
def test_they_fit_and_the_fastest_comes_first(size: str, ranks: int, gib: float):
    flags, found = advise(size, ranks, gib)
    model = model_config(flags.model, 50277, flags.data.seq_len)
    for one in found:
        job = Job.of(model, one.flags, ranks, gpu_memory=gib)
        assert fits(peak(job), gib)
        assert one.time == step_time(job, H100)
    times = [one.time.total for one in found]
    assert times == pytest.approx(sorted(times), rel=0.01)


def test_a_large_gpu_needs_no_recomputation():
    _, found = advise("1.7b", 64, 192)
    assert found[0].job.tp == found[0].job.pp == 1
    assert found[0].job.recompute == "none"


def test_a_long_pipeline_is_not_recommended_where_a_short_one_fits():
    """7B at 32768 tokens on 1024 GPUs had pp 8, of whose time the bubble was most."""
    seven = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32}
    _, found = advise("1.7b", 1024, 80, length=32768, batch=256, **seven)
    assert all(one.time.bubble_share <= LARGEST_BUBBLE for one in found)
    assert found[0].job.pp == 1


def test_long_sequences_are_shared_out():
    """What no topology fits without a bubble of most of the step, or none at all."""
    flags, found = advise("1.7b", 64, 80, length=131072, batch=16)
    best = found[0]
    assert best.job.cp > 1 and best.time.bubble_share == 0
    assert f"--cp {best.job.cp} " in best.command
    assert best.time.context > 0
    model = model_config(flags.model, 50277, flags.data.seq_len)
    (alone,) = recommend(model, flags, 64, 80, H100, count=1, sharing=False)
    assert alone.job.cp == 1
    told = [line for line in advice(found, H100, 80, alone) if isinstance(line, str)]
    assert told[2].startswith(f"  --cp {best.job.cp}, because without it a step takes ")
    assert told[2].endswith(alone.command)


def test_two_million_tokens_fit_where_ranks_share_them():
    flags, found = advise("1.7b", 8, 80, length=2**21, batch=1)
    assert found[0].job.cp > 1
    model = model_config(flags.model, 50277, flags.data.seq_len)
    with pytest.raises(UserError, match="^nothing fits 80 GiB on 8 GPUs") as without:
        recommend(model, flags, 8, 80, H100, sharing=False)
    told = [line for line in advice(found, H100, 80, without.value) if isinstance(line, str)]
    assert told[2].startswith(
        f"  --cp {found[0].job.cp}, because without it nothing fits 80 GiB on 8 GPUs: the least is "
    )
    assert told[2].endswith(", recomputing layers)")


def test_short_sequences_are_not_shared_out():
    _, found = advise("1.7b", 64, 80)
    assert all(one.job.cp == 1 for one in found)


def test_smaller_gpus_need_more():
    times = [advise("1.7b", 8, gib)[1][0].time.total for gib in (80, 24, 16, 14)]
    assert times == sorted(times)
    assert times[0] < times[-1]


def test_where_nothing_fits_the_least_is_told():
    with pytest.raises(UserError, match=r"^nothing fits 4 GiB on 2 GPUs: the least is .* use more GPUs"):
        advise("1.7b", 2, 4)


def test_a_batch_that_cannot_be_shared_out_is_told():
    with pytest.raises(UserError, match="use a --global-batch-size that is a multiple of 7"):
        advise("70m", 7, 80)


def test_the_reason_is_told():
    _, found = advise("1.7b", 64, 80)
    lines = [line for line in advice(found, H100, 80) if isinstance(line, str)]
    assert lines[0] == f"recommended: {found[0].command}"
    assert lines[1].startswith("  because no other that fits is faster: ")
    assert lines[2] == "  pipeline bubble: 0.0% of a step"
