"""Report of a job's plan, for the terminal."""

from collections.abc import Iterator, Sequence

from rich.table import Table

from deconattn.config.flags import TrainingFlags
from deconattn.cost.cluster import Cluster
from deconattn.cost.communication import stage_traffic
from deconattn.cost.job import Job
from deconattn.cost.memory import peak, stage_peak
from deconattn.cost.parameters import rank_parameters
from deconattn.cost.recommend import HEADROOM, LARGEST_BUBBLE, Recommendation, fits
from deconattn.cost.step_time import StepTime, checkpoint_bytes, step_time, tokens_per_second, utilisation
from deconattn.errors import UserError

MEMORY = {
    "weights": "weights",
    "gradients": "gradients",
    "optimizer": "optimiser states",
    "buffers": "DeepSpeed's buffers",
    "activations": "activations",
    "logits": "logits",
    "total": "peak",
}
"""Attributes of :class:`deconattn.cost.zero.Memory` and what they are called."""
PARTS = {
    "compute": "compute",
    "tensor": "tp",
    "context": "cp",
    "hops": "hops",
    "bubble": "bubble",
    "data": "ZeRO",
    "update": "update",
}
"""Attributes of :class:`deconattn.cost.step_time.StepTime` and what they are called."""
SENT = {
    "tensor": "for tp",
    "context": "for cp",
    "data": "for ZeRO",
    "pipeline": "to stages",
    "tied": "for the tied head",
}
"""Attributes of :class:`deconattn.cost.communication.Traffic` and what they are called."""


def per_rank(job: Job) -> Table:
    """Tabulate parameters, peak memory and bytes sent in a step, for one rank of each pipeline stage."""
    table = Table(title=f"One rank of {job.ranks}: {job.shape}, ZeRO {job.zero}")
    table.add_column("", no_wrap=True)
    for stage in range(job.pp):
        table.add_column(f"stage {stage}" if job.pp > 1 else "every rank", justify="right", no_wrap=True)
    peaks = [stage_peak(job, stage).memory for stage in range(job.pp)]
    traffic = [stage_traffic(job, stage) for stage in range(job.pp)]
    table.add_row("layers", *(f"{span.start}-{span.stop - 1}" for span in job.spans))
    table.add_row("parameters", *(f"{rank_parameters(job.model, span, job.tp).total:,}" for span in job.spans))
    table.add_section()
    for kind, name in MEMORY.items():
        table.add_row(f"{name}, GiB", *(_gib(getattr(memory, kind)) for memory in peaks))
    table.add_section()
    for kind, name in SENT.items():
        table.add_row(f"sent {name}, GiB a step", *(_gib(getattr(sent, kind)) for sent in traffic))
    return table


def summary(job: Job, gpu_memory: float) -> Iterator[str]:
    """Describe a step, the pipeline's bubble, and whether the job fits GPUs of `gpu_memory` GiB."""
    tokens = job.micro_batch * job.accumulation * job.dp * job.length
    yield (
        f"a step: {job.accumulation} x {job.micro_batch} sequences of {job.length} tokens on each of {job.dp} "
        f"replicas, {tokens:,} tokens"
    )
    if job.tp > 1:
        form = "gathers and reduce-scatters" if job.sequence_parallel else "all-reduces"
        yield f"tensor parallelism communicates by {form}"
    largest = peak(job)
    where = f"stage {largest.stage}, {largest.name}" if job.pp > 1 else largest.name
    yield (
        f"{'fits' if fits(largest, gpu_memory) else 'does not fit'}: {_gib(largest.memory.total)} of {gpu_memory:g} "
        f"GiB at the peak ({where}), {HEADROOM:.0%} to be kept free"
    )


def timing(job: Job, cluster: Cluster, flags: TrainingFlags) -> Iterator[str]:
    """Describe the time of a step and what it is made of, the whole training's, and a checkpoint's."""
    time = step_time(job, cluster)
    rate, used = tokens_per_second(job, time.total), utilisation(job, cluster, time.total)
    yield f"step time: {seconds(time.total)} ({shares(time)})"
    yield f"{rate:,.0f} tokens/s, MFU {used:.1%}"
    size, days = checkpoint_bytes(job), flags.total_steps * time.total / 86400
    writing, between = size / cluster.storage, flags.run.save_every * time.total
    yield f"{flags.total_steps:,} steps: {days:,.2f} days"
    yield (
        f"a checkpoint: {size / 2**30:,.1f} GiB, {seconds(writing)} to write at {cluster.storage / 1e9:g} GB/s; "
        f"{writing / between:.1%} of the time between two"
    )


def advice(
    found: Sequence[Recommendation], cluster: Cluster, gib: float, alone: Recommendation | UserError | None = None
) -> Iterator[str | Table]:
    """Return the recommended flags and the reason, and a table of those that come next.

    Args:
        alone: what would be recommended if no ranks shared sequences, or why nothing would; None: they do not.
    """
    best = found[0]
    rate, used = best.tokens_per_second, utilisation(best.job, cluster, best.time.total)
    yield f"recommended: {best.command}"
    yield (
        f"  because no other that fits is faster: {seconds(best.time.total)} a step, {rate:,.0f} tokens/s, MFU "
        f"{used:.1%}, {_gib(best.peak.memory.total)} of {gib:g} GiB"
    )
    if isinstance(alone, UserError):
        reason = str(alone).partition(";")[0]  # after which remedies come, of which this is one
        yield f"  --cp {best.job.cp}, because without it {reason}"
    elif alone is not None:
        waits = f", of which {alone.time.bubble_share:.0%} bubble" if alone.time.bubble_share > LARGEST_BUBBLE else ""
        yield (
            f"  --cp {best.job.cp}, because without it a step takes {seconds(alone.time.total)}{waits}: {alone.command}"
        )
    yield f"  pipeline bubble: {best.time.bubble_share:.1%} of a step"
    if best.time.bubble_share > LARGEST_BUBBLE:
        yield "  which is much, but all that fit have as much: a larger --global-batch-size would fill the pipeline"
    table = Table(title="The fastest that fit")
    for column in ("flags", "step", "slower", "tokens/s", "bubble", "GiB", "where the time goes"):
        table.add_column(column, justify="left" if column in ("flags", "where the time goes") else "right")
    for one in found:
        table.add_row(
            one.command,
            seconds(one.time.total),
            f"{one.time.total / best.time.total - 1:+.1%}" if one is not best else "",
            f"{one.tokens_per_second:,.0f}",
            f"{one.time.bubble_share:.1%}",
            _gib(one.peak.memory.total),
            shares(one.time),
        )
    yield table


def shares(time: StepTime) -> str:
    """Name the parts of a step that take a hundredth or more, the largest first."""
    parts = {name: getattr(time, kind) / time.total for kind, name in PARTS.items()}
    shown = sorted((part for part in parts.items() if part[1] >= 0.01), key=lambda part: -part[1])
    return ", ".join(f"{name} {share:.0%}" for name, share in shown)


def seconds(time: float) -> str:
    """Format a time with three digits."""
    return f"{1e3 * time:.3g} ms" if time < 1 else f"{time:,.3g} s" if time < 1000 else f"{time:,.0f} s"


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f}"
