"""The ranks of a job that differ, each tried in a process of its own."""

import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace

from deconattn.config.flags import TrainingFlags
from deconattn.cost.job import Job
from deconattn.dry_run.one_rank import Dry, RankReport, dry_run_rank
from deconattn.errors import UserError
from deconattn.layers.config import ModelConfig
from deconattn.progress import Advance, unseen

PREPARED = "deconattn.dry_run.prepared"


def distinct_ranks(job: Job) -> dict[int, str]:
    """Return ranks that stand for all others, and which they stand for.

    Stages differ by their layers and by the micro-batches that they hold; the first and the last one are always
    tried, and of the others the first of each composition, which holds most. Tensor-parallel ranks differ where a
    width does not divide; the first has the largest part, and the last the smallest. Of ranks that share a sequence,
    whose parts are equal, the first and the last may differ in what they exchange. Replicas do not differ: ZeRO's parts
    are equal, but for padding at the end of the last.
    """
    found: dict[int, str] = {}
    seen: set[tuple[object, ...]] = set()
    uneven = any(size % job.tp for size in (job.model.vocab_size, job.model.intermediate_size))
    for stage, span in enumerate(job.spans):
        ends = stage in (0, job.pp - 1)
        kind = (stage if ends else None, tuple(job.model.layer_variants[layer] for layer in span))
        if kind in seen:
            continue
        seen.add(kind)
        first = stage * job.tp * job.zero_size
        of_stage = f"stage {stage}" if job.pp > 1 else "every rank"
        found[first] = of_stage
        if uneven and job.tp > 1:
            found[first + job.tp - 1] = f"{of_stage}, its last tensor-parallel rank"
        if job.cp > 1:
            found[first + job.tp * (job.cp - 1)] = f"{of_stage}, the end of its sequences"
    return found


def dry_run(
    model: ModelConfig,
    flags: TrainingFlags,
    ranks: int,
    gpu_memory: float,
    chosen: Sequence[int],
    advance: Advance = unseen,
) -> list[RankReport]:
    """Build and step ranks of a job; returns their reports in order.

    Args:
        gpu_memory: of a GPU, GiB.
        advance: told of each rank that is done.

    Raises:
        UserError: what the job itself would be refused with, which any rank finds.
    """
    dry = Dry(flags, model, ranks, 0, int(gpu_memory * 2**30))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([PREPARED])  # imported once, and every rank is forked from there
    workers = min(len(chosen), len(os.sched_getaffinity(0)))
    with ProcessPoolExecutor(workers, context, max_tasks_per_child=1) as pool:
        reports = []
        for report in pool.map(dry_run_rank, [replace(dry, rank=rank) for rank in chosen]):
            reports.append(report)
            advance(1)
    for report in reports:
        if report.refusal is not None and report.users:
            raise UserError(report.refusal)
    return reports
