"""ZeRO-3 with second copies of weights among neighbours (hpZ): the same training, and the copies are used."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deconattn.checkpoint.format import open_checkpoint
from deconattn.config.command_line import parse_training_flags
from deconattn.config.flags import model_config
from deconattn.cost.communication import stage_traffic
from deconattn.cost.job import Job
from deconattn.cost.zero import zero_memory
from deconattn.parallel.topology import runs
from tests.ranks import Ranks
from tests.train.conftest import rows
from tests.train.jobs import run_job, train


def copies(arguments: list[str]) -> tuple[int, set[tuple[int, int]]]:
    """Train; the number of ranks in the group that copies are gathered in, and sizes of tensors and copies."""
    import torch.distributed as dist

    trainer = run_job(arguments)  # the validation at its end has gathered weights
    parameters: list[Any] = list(trainer.engine.model.parameters())
    sizes = {(p.ds_numel, p.ds_secondary_tensor.numel()) for p in parameters if p.ds_secondary_tensor is not None}
    ranks = dist.get_world_size(parameters[0].ds_zero_param_process_group)
    trainer.engine.destroy()
    return ranks, sizes


def told(run: Path) -> list[tuple[float, ...]]:
    return [(row["loss"], row["grad_norm"]) if "loss" in row else (row["val_loss"],) for row in rows(run)]


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_two_machines_of_two_ranks_train_as_zero_3_does_bit_for_bit(
    small: list[str], tmp_path: Path, ranks: Callable[[int], Ranks], precision: str
) -> None:
    zero3 = ["--zero", "3", "--precision", precision, "--micro-batch-size", "1", "--global-batch-size", "8"]
    flags = [*small, "--variant", "fixedseq", "--pattern", "1:1", *zero3, "--eval-every", "3"]
    plain, shared, resumed = (tmp_path / name for name in ("plain", "shared", "resumed"))
    assert ranks(4)(train, arguments=[*flags, "--save", str(plain)]) is None
    size, sizes = ranks(4)(copies, arguments=[*flags, "--zero-hpz", "2", "--save", str(shared)])
    assert size == 2
    assert sizes and all(copy == math.ceil(whole / 4) * 2 for whole, copy in sizes), "half a tensor each"
    assert ranks(4)(train, arguments=["stop=3", *flags, "--zero-hpz", "2", "--save", str(resumed)]) is None
    assert ranks(4)(train, arguments=["--save", str(resumed), "--resume", "--zero-hpz", "2"]) is None
    expected = open_checkpoint(plain).weights()
    for run in (shared, resumed):
        assert told(run) == told(plain)
        assert all(weight.equal(expected[name]) for name, weight in open_checkpoint(run).weights().items())
    # A run goes on without, on other ranks.
    assert ranks(2)(train, arguments=["--save", str(shared), "--resume", "--zero-hpz", "0", "--steps", "8"]) is None


def test_neighbours_hold_the_same_part_of_the_model() -> None:
    """Of 2 tensor-parallel x 4 data-parallel ranks: not those with consecutive numbers."""
    data = [[0, 2, 4, 6], [1, 3, 5, 7]]
    assert runs(data, 2) == [[0, 2], [4, 6], [1, 3], [5, 7]]


def job(*words: str, ranks: int = 64) -> Job:
    flags = parse_training_flags(["--size", "1.7b", "--precision", "bf16", "--zero", "3", *words])
    return Job.of(model_config(flags.model, 50304, flags.data.seq_len), flags, ranks)


def test_the_planner_knows_the_second_copy() -> None:
    plain, shared = job(), job("--zero-hpz", "8")
    parameters = 1_000_000_000
    held = [zero_memory(job, parameters, 1000).always.weights for job in (plain, shared)]
    assert held == [2 * parameters // 64, 2 * parameters // 64 + 2 * parameters // 8]
    assert stage_traffic(shared, 0).data < stage_traffic(plain, 0).data
    assert stage_traffic(job("--zero-quantized-weights"), 0).data < stage_traffic(plain, 0).data
