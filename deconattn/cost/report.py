"""Report of a job's plan, for the terminal."""

from collections.abc import Iterator

from rich.table import Table

from deconattn.cost.communication import stage_traffic
from deconattn.cost.job import Job
from deconattn.cost.memory import peak, stage_peak
from deconattn.cost.parameters import rank_parameters
from deconattn.cost.recommend import HEADROOM, Recommendation, fits

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
SENT = {"tensor": "for tp", "data": "for ZeRO", "pipeline": "to stages", "tied": "for the tied head"}
"""Attributes of :class:`deconattn.cost.communication.Traffic` and what they are called."""


def per_rank(job: Job) -> Table:
    """Tabulate parameters, peak memory and bytes sent in a step, for one rank of each pipeline stage."""
    table = Table(title=f"One rank of {job.ranks}: tp {job.tp} x pp {job.pp} x dp {job.dp}, ZeRO {job.zero}")
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
    if job.pp > 1:
        yield f"pipeline bubble: {job.bubble:.1%} of a step"
    largest = peak(job)
    where = f"stage {largest.stage}, {largest.name}" if job.pp > 1 else largest.name
    yield (
        f"{'fits' if fits(largest, gpu_memory) else 'does not fit'}: {_gib(largest.memory.total)} of {gpu_memory:g} "
        f"GiB at the peak ({where}), {HEADROOM:.0%} to be kept free"
    )


def advice(recommendation: Recommendation) -> Iterator[str]:
    """Return the recommended flags and the reason, as lines."""
    yield f"recommended: {recommendation.command}"
    yield f"  because {recommendation.reason}"


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f}"
