"""Cost of a plan's runs, a check of their training flags, and their assignment to machines."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from deconattn.errors import UserError
from deconattn.reproduction.plans import ReproductionPlan, Request, Run, training_flags

DEMO_VOCABULARY = 2048
"""Vocabulary size of the tokenizer that is trained on the bundled demo corpus."""


@dataclass(frozen=True)
class Estimate:
    """Size and cost of a run.

    Attributes:
        flops: FLOPs of the whole training, forward and backward; shards are balanced by them.
        tokens: number of training tokens, in whole steps.
        length: tokens of a training sequence.
    """

    parameters: int
    flops: int
    tokens: int
    length: int


def estimate_runs(request: Request, runs: Sequence[Run]) -> dict[str, Estimate]:
    """Estimate each run, by name, and check its flags as the command `train` would.

    Raises:
        UserError: flags, corpora or a folder of documents that training or evaluation would refuse.
    """
    # Late, because they load PyTorch, and a plan that has been made is carried on without.
    from deconattn.config.flags import model_config
    from deconattn.evaluation.datasets import MAKE
    from deconattn.launch.preflight import checked_flags
    from deconattn.model.flops import count_parameters, step_flops

    if request.datasets is not None and not request.datasets.is_dir():
        raise UserError(f"--datasets {request.datasets}: no such folder; {MAKE}")
    vocabulary = _vocabulary(request)
    found: dict[str, Estimate] = {}
    models: dict[Run, Estimate] = {}
    for run in runs:
        if run.model in models:  # seeds and rates cost the same
            found[run.name] = models[run.model]
            continue
        flags = checked_flags(training_flags(request, run))
        model = model_config(flags.model, vocabulary, flags.data.seq_len)
        micro, rows = flags.optimization.micro_batch_size, flags.optimization.global_batch_size
        if request.lr_sweep and not flags.run.eval_every:
            raise UserError("--lr-sweep takes the best rate by validation loss: give --train an --eval-every above 0")
        found[run.name] = models[run.model] = Estimate(
            parameters=count_parameters(model).total,
            flops=flags.total_steps * step_flops(model, micro, flags.data.seq_len, rows // micro),
            tokens=flags.total_steps * rows * flags.data.seq_len,
            length=flags.data.seq_len,
        )
    return found


def _vocabulary(request: Request) -> int:
    if not request.data:
        return DEMO_VOCABULARY
    from deconattn.data import parse_data_argument, read_manifest

    return max(read_manifest(parse_data_argument(argument)[0]).vocab_size for argument in request.data)


def read_shard(text: str) -> tuple[int, int]:
    """`2/3` as (2, 3), the second of three (UserError if it is no such thing)."""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise UserError(f"--shard {text}: give I/N, the I-th of N machines counted from 1, such as 1/3")
    return int(match[1]), int(match[2])


def shards_of(plan: ReproductionPlan, estimates: Mapping[str, Estimate], count: int) -> dict[Run, int]:
    """Return the shard, from 1, of every run that a job of the plan names."""
    items: dict[Run, list[Run]] = {}
    for job in plan.jobs:
        swept = job.run.swept or job.run.lr is not None
        items.setdefault(job.run.model if swept else job.run, []).append(job.run)
    trained = set(plan.runs)
    costs = [sum(estimates[run.name].flops for run in dict.fromkeys(runs) if run in trained) for runs in items.values()]
    return {run: shard for runs, shard in zip(items.values(), deal(costs, count), strict=True) for run in runs}


def deal(costs: Sequence[float], count: int) -> list[int]:
    """The shard, from 1, of each item: the dearest first, each to the shard that has least so far.

    Every machine comes to the same answer by itself. A run and all that is measured of it are one item, and so are all
    runs of a model whose rate is swept, so that no machine waits for another.
    """
    loads = [0.0] * count
    shards = [0] * len(costs)
    for item in sorted(range(len(costs)), key=lambda item: (-costs[item], item)):
        least = loads.index(min(loads))
        loads[least] += costs[item]
        shards[item] = least + 1
    return shards
