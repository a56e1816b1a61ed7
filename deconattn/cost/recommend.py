"""Search for the topologies that train fastest among those whose peak memory fits."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from deconattn.config.flag_groups import Recompute
from deconattn.config.flags import TrainingFlags
from deconattn.cost.cluster import Cluster
from deconattn.cost.job import Job
from deconattn.cost.memory import MemorySnapshot, peak
from deconattn.cost.step_time import StepTime, step_time, tokens_per_second
from deconattn.errors import UserError
from deconattn.layers.config import ModelConfig

HEADROOM = 0.1
"""Share of the GPU kept free: CUDA's context, NCCL's and cuBLAS's workspaces, and gaps between tensors."""
LARGEST_BUBBLE = 0.2
"""Share of a step in the pipeline's bubble above which nothing is recommended while something else fits."""
MICRO_BATCHES = (1, 2, 4, 8, 16)
"""Micro-batches that are tried beside the flags'."""
STAGES: tuple[Literal[0, 1, 2, 3], ...] = (0, 1, 2, 3)
RECOMPUTED: tuple[Recompute, ...] = ("none", "layer")
SHORTEST_PART = 2048
"""Tokens of a sequence that a rank is to have at least, where ranks share it: fewer leave its kernels idle."""


@dataclass(frozen=True)
class Recommendation:
    """Topology that fits: its flags and job, its peak snapshot and the time of a step."""

    flags: TrainingFlags
    job: Job
    peak: MemorySnapshot
    time: StepTime

    @property
    def command(self) -> str:
        """Return the flags that differ from the defaults, as typed."""
        engine, job = self.flags.engine, self.job
        parts = [f"--zero {job.zero}", f"--micro-batch-size {job.micro_batch}"]
        if job.tp > 1:
            parts.insert(0, f"--tp {job.tp}{' --sequence-parallel' if engine.sequence_parallel else ''}")
        if job.pp > 1:
            parts.insert(len(parts) - 2, f"--pp {job.pp}")
        if job.cp > 1:
            parts.insert(len(parts) - 2, f"--cp {job.cp}")
        return " ".join(parts + [f"--recompute {engine.recompute}"] * (engine.recompute != "none"))

    @property
    def tokens_per_second(self) -> float:
        return tokens_per_second(self.job, self.time.total)


@dataclass(frozen=True)
class _Candidate:
    flags: TrainingFlags
    job: Job
    time: StepTime


def fits(snapshot: MemorySnapshot, gib: float) -> bool:
    """Return whether a snapshot fits a GPU of `gib` GiB with headroom."""
    return snapshot.memory.total <= (1 - HEADROOM) * gib * 2**30


def recommend(
    model: ModelConfig,
    flags: TrainingFlags,
    ranks: int,
    gib: float,
    cluster: Cluster,
    count: int = 5,
    sharing: bool = True,
) -> list[Recommendation]:
    """Return the `count` topologies of the least step time that fit, the fastest first.

    The global batch is the flags'. A pipeline whose bubble is more than a fifth of a step comes after all others.
    Tensor parallelism stays within a machine and comes with sequence parallelism, which only saves; DeepSpeed's files
    are those of ds_configs/.

    Args:
        sharing: ranks may share sequences.

    Raises:
        UserError: none fits, or no topology goes with model, batch and ranks.
    """
    candidates, complaint = [], None
    for flags_of_one in _candidates(flags, ranks, cluster, sharing):
        try:
            job = Job.of(model, flags_of_one, ranks, gpu_memory=gib)
        except UserError as error:
            complaint = complaint or error
            continue
        candidates.append(_Candidate(flags_of_one, job, step_time(job, cluster)))
    # Of two that take as long, the simpler one.
    candidates.sort(
        key=lambda one: (
            one.time.bubble_share > LARGEST_BUBBLE,
            float(f"{one.time.total:.3g}"),
            one.job.tp,
            one.job.pp,
            one.job.cp,
            one.job.zero,
            one.job.recompute != "none",
        )
    )
    found: list[Recommendation] = []
    least: tuple[int, TrainingFlags] | None = None
    for one in candidates:
        largest = peak(one.job)
        if fits(largest, gib):
            found.append(Recommendation(one.flags, one.job, largest, one.time))
            if len(found) == count:
                break
        elif least is None or largest.memory.total < least[0]:
            least = largest.memory.total, one.flags
    if found:
        return found
    if least is None:
        raise complaint or UserError(f"no topology for {ranks} ranks: change --gpus")
    needed = least[0] / 2**30 / (1 - HEADROOM)
    raise UserError(
        f"nothing fits {gib:g} GiB on {ranks} GPUs: the least is {needed:.1f} GiB a GPU with headroom "
        f"({describe(least[1])}); use more GPUs, larger ones, or a shorter --seq-len"
    )


def describe(flags: TrainingFlags) -> str:
    """Describe a topology in a few words."""
    engine = flags.engine
    context = f"cp {engine.cp}, " if engine.cp > 1 else ""
    return (
        f"tp {engine.tp}, {context}pp {engine.pp}, ZeRO {engine.zero_stage}, "
        f"micro-batch {flags.optimization.micro_batch_size}"
        f"{', recomputing layers' if engine.recompute == 'layer' else ''}"
    )


def _candidates(flags: TrainingFlags, ranks: int, cluster: Cluster, sharing: bool) -> Iterator[TrainingFlags]:
    lowest = 1 if flags.engine.precision == "bf16" else 0
    micro_batches = sorted({flags.optimization.micro_batch_size, *MICRO_BATCHES})
    deepest = min(ranks, flags.model.num_hidden_layers)
    for tp in (size for size in range(1, cluster.per_node + 1) if cluster.per_node % size == 0 and ranks % size == 0):
        for pp in (stages for stages in range(1, deepest + 1) if ranks % (tp * stages) == 0):
            for cp in _shares(flags.data.seq_len, ranks // (tp * pp)) if sharing else (1,):
                for zero in STAGES[lowest : 4 if pp == 1 else 2]:
                    for recompute in RECOMPUTED:
                        for micro in micro_batches:
                            yield _with(flags, tp, pp, cp, zero, recompute, micro)


def _shares(length: int, ranks: int) -> Iterator[int]:
    """Yield the numbers of ranks that may share a sequence: powers of two that divide it and the ranks."""
    cp = 1
    while ranks % cp == 0 and length % cp == 0 and (cp == 1 or length // cp >= SHORTEST_PART):
        yield cp
        cp *= 2


def _with(
    flags: TrainingFlags, tp: int, pp: int, cp: int, zero: Literal[0, 1, 2, 3], recompute: Recompute, micro: int
) -> TrainingFlags:
    engine = dataclasses.replace(
        flags.engine,
        tp=tp,
        pp=pp,
        cp=cp,
        zero=zero,
        deepspeed_config=None,
        sequence_parallel=tp > 1,
        recompute=recompute,
    )
    optimization = dataclasses.replace(flags.optimization, micro_batch_size=micro)
    return dataclasses.replace(flags, engine=engine, optimization=optimization)
