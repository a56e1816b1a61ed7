"""Search for the simplest topology whose peak memory fits."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from deconattn.config.flag_groups import Recompute
from deconattn.config.flags import TrainingFlags
from deconattn.cost.job import Job
from deconattn.cost.memory import MemorySnapshot, peak
from deconattn.errors import UserError
from deconattn.layers.config import ModelConfig

HEADROOM = 0.1
"""Share of the GPU kept free: CUDA's context, NCCL's and cuBLAS's workspaces, and gaps between tensors."""
TENSOR_RANKS = (1, 2, 4, 8)
"""Tensor-parallel sizes that are tried: their ranks share a machine."""
STAGES: tuple[Literal[0, 1, 2, 3], ...] = (0, 1, 2, 3)
RECOMPUTED: tuple[Recompute, ...] = ("none", "layer")


@dataclass(frozen=True)
class Recommendation:
    """Recommended flags, their job and peak snapshot, and the reason in a line."""

    flags: TrainingFlags
    job: Job
    peak: MemorySnapshot
    reason: str

    @property
    def command(self) -> str:
        """Return the flags that differ from the defaults, as typed."""
        engine, job = self.flags.engine, self.job
        parts = [f"--zero {job.zero}", f"--micro-batch-size {job.micro_batch}"]
        if job.tp > 1:
            parts.insert(0, f"--tp {job.tp}{' --sequence-parallel' if engine.sequence_parallel else ''}")
        if job.pp > 1:
            parts.insert(1 if job.tp > 1 else 0, f"--pp {job.pp}")
        return " ".join(parts + [f"--recompute {engine.recompute}"] * (engine.recompute != "none"))


def fits(snapshot: MemorySnapshot, gib: float) -> bool:
    """Return whether a snapshot fits a GPU of `gib` GiB with headroom."""
    return snapshot.memory.total <= (1 - HEADROOM) * gib * 2**30


def recommend(model: ModelConfig, flags: TrainingFlags, ranks: int, gib: float) -> Recommendation:
    """Return the first topology that fits: fewest tensor-parallel ranks, then stages, then lowest ZeRO stage.

    Within one of these the micro-batch is halved first, then layers are recomputed, which costs a third more time.
    Tensor parallelism comes with sequence parallelism, which only saves; DeepSpeed's files are those of ds_configs/.

    Raises:
        UserError: none fits, or no topology goes with model, batch and ranks.
    """
    before: tuple[TrainingFlags, MemorySnapshot] | None = None
    smallest: tuple[TrainingFlags, MemorySnapshot] | None = None
    complaint: UserError | None = None
    for candidate in _candidates(flags, ranks):
        try:
            job = Job.of(model, candidate, ranks, gpu_memory=gib)
        except UserError as error:
            complaint = complaint or error
            continue
        largest = peak(job)
        if fits(largest, gib):
            return Recommendation(candidate, job, largest, _reason(candidate, largest, gib, before))
        before = candidate, largest
        if smallest is None or largest.memory.total < smallest[1].memory.total:
            smallest = before
    if smallest is None:
        raise complaint or UserError(f"no topology for {ranks} ranks: change --gpus")
    needed = smallest[1].memory.total / 2**30 / (1 - HEADROOM)
    raise UserError(
        f"nothing fits {gib:g} GiB on {ranks} GPUs: the least is {needed:.1f} GiB a GPU with headroom "
        f"({_describe(smallest[0])}); use more GPUs, larger ones, or a shorter --seq-len"
    )


def _candidates(flags: TrainingFlags, ranks: int) -> Iterator[TrainingFlags]:
    lowest = 1 if flags.engine.precision == "bf16" else 0
    for tp in TENSOR_RANKS:
        for pp in (stages for stages in range(1, ranks // tp + 1) if ranks % (tp * stages) == 0):
            for zero in STAGES[lowest : 4 if pp == 1 else 2]:
                for recompute in RECOMPUTED:
                    micro = flags.optimization.micro_batch_size
                    while micro:
                        yield _with(flags, tp, pp, zero, recompute, micro)
                        micro //= 2


def _with(
    flags: TrainingFlags, tp: int, pp: int, zero: Literal[0, 1, 2, 3], recompute: Recompute, micro: int
) -> TrainingFlags:
    engine = dataclasses.replace(
        flags.engine,
        tp=tp,
        pp=pp,
        zero=zero,
        deepspeed_config=None,
        sequence_parallel=tp > 1,
        recompute=recompute,
    )
    optimization = dataclasses.replace(flags.optimization, micro_batch_size=micro)
    return dataclasses.replace(flags, engine=engine, optimization=optimization)


def _reason(
    flags: TrainingFlags, largest: MemorySnapshot, gib: float, before: tuple[TrainingFlags, MemorySnapshot] | None
) -> str:
    need = f"{_describe(flags)} needs {largest.memory.total / 2**30:.1f} of {gib:g} GiB"
    if before is None:
        return f"{need}, and nothing is simpler"
    return f"{need}; {_describe(before[0])}, the choice before it, {before[1].memory.total / 2**30:.1f}"


def _describe(flags: TrainingFlags) -> str:
    engine = flags.engine
    return (
        f"tp {engine.tp}, pp {engine.pp}, ZeRO {engine.zero_stage}, micro-batch {flags.optimization.micro_batch_size}"
        f"{', recomputing layers' if engine.recompute == 'layer' else ''}"
    )
