"""Time of an optimiser step on a cluster: compute, the pipeline's bubble, and what is communicated without a cover.

What our engine overlaps, and what it does not:

* Tensor parallelism: its exchanges stand between products that need them, so all of their time counts.
* Context parallelism: so do a layer's, before its mixing and after it.
* Pipeline: 1F1B, DeepSpeed's schedule. With t(s) the time of one micro-batch on stage s, both passes, exchanges and
  hops with it, and m micro-batches, a step takes sum t(s) + (m - 1) max t(s). DeepSpeed waits for each hop.
* ZeRO-0 to 2: gradients are reduced after the last backward pass (2: after each), weights gathered after the update;
  with `overlap_comm` in the DeepSpeed file the reductions hide behind the backward pass that makes them.
* ZeRO-3: gathers and reductions hide behind the computation of a micro-batch as far as that takes as long, but for a
  fifth: those of the first layer come before any work, and kernels that run beside them are slower (assumed).
"""

from dataclasses import dataclass

from deconattn.cost.cluster import Cluster
from deconattn.cost.communication import stage_traffic
from deconattn.cost.compute import stage_compute
from deconattn.cost.job import Job
from deconattn.model.flops import count_parameters, training_flops

CHECKPOINT_BYTES = 12
"""Bytes of a checkpoint for a parameter: fp32 weight and two moments."""
CALLS_A_LAYER = 4
"""Tensor-parallel exchanges of a layer in both passes; under sequence parallelism two collectives each."""

EXCHANGES_A_LAYER = 8
"""Exchanges of a layer among ranks that share a sequence, in both passes: queries, keys, values and what is mixed."""

COVERED = 0.8
"""Part of ZeRO-3's communication that computation may cover."""


@dataclass(frozen=True)
class StepTime:
    """Seconds of an optimiser step, of the rank that sets the pace.

    Attributes:
        compute: forward and backward passes of its micro-batches, recomputation with them.
        tensor: exchanges of tensor parallelism.
        context: exchanges among ranks that share a sequence.
        hops: between stages.
        bubble: waiting for the pipeline to fill and drain, or for a slower stage.
        data: reductions and gathers of ZeRO that nothing covers.
        update: norm, clipping and AdamW.
    """

    compute: float
    tensor: float
    context: float
    hops: float
    bubble: float
    data: float
    update: float

    @property
    def total(self) -> float:
        return self.compute + self.tensor + self.context + self.hops + self.bubble + self.data + self.update

    @property
    def bubble_share(self) -> float:
        """Share of the step that is bubble."""
        return self.bubble / self.total


@dataclass(frozen=True)
class _Stage:
    """Seconds of one micro-batch on a stage by kind, and what comes once after the last one."""

    compute: float
    tensor: float
    context: float
    hops: float
    streams: float
    data: float
    update: float

    @property
    def micro_batch(self) -> float:
        return self.compute + self.tensor + self.context + self.hops


def step_time(job: Job, cluster: Cluster) -> StepTime:
    """Return the time of a step."""
    stages = [_stage(job, cluster, stage) for stage in range(job.pp)]
    slowest = max(stages, key=lambda stage: stage.micro_batch)
    end = max(stages, key=lambda stage: stage.data + stage.update)
    m = job.accumulation
    passes = sum(stage.micro_batch for stage in stages) + (m - 1) * slowest.micro_batch
    return StepTime(
        compute=m * slowest.compute + slowest.streams,  # which only a single stage holds
        tensor=m * slowest.tensor,
        context=m * slowest.context,
        hops=m * slowest.hops,
        bubble=max(0.0, passes - m * slowest.micro_batch),  # one stage: a sum in another order
        data=end.data,
        update=end.update,
    )


def _stage(job: Job, cluster: Cluster, stage: int) -> _Stage:
    compute, sent, m = stage_compute(job, cluster, stage), stage_traffic(job, stage), job.accumulation
    layers = len(job.spans[stage])
    calls = CALLS_A_LAYER * layers * (2 if job.sequence_parallel else 1)
    tensor = cluster.seconds(sent.tensor / m, calls, job.tp, 1)
    exchanges = EXCHANGES_A_LAYER * layers
    context = cluster.seconds(sent.context / m, exchanges, job.cp, job.tp, ring=False)
    # A hop is sent and received in turn, and what comes in is as much as what goes out.
    hops = cluster.seconds(2 * sent.pipeline / m, 4, job.pp, job.tp * job.zero_size)
    tied = cluster.seconds(sent.tied, 1, 2, job.tp * job.zero_size * max(1, job.pp - 1))
    passes = compute.forward + compute.backward
    zero = cluster.seconds(sent.data, _calls(job), job.zero_size, job.tp)
    data = _uncovered(job, zero, compute.backward, passes)
    return _Stage(passes, tensor, context, hops, compute.streams, data + tied, compute.update)


def _calls(job: Job) -> int:
    """Collectives of ZeRO in a step."""
    m, layers = job.accumulation, job.model.num_hidden_layers
    return (2, 2, m + 1, 3 * m * layers)[job.zero]


def _uncovered(job: Job, seconds: float, backward: float, passes: float) -> float:
    """Seconds of ZeRO's communication that no computation covers."""
    m = job.accumulation
    if job.zero == 3:
        return max((1 - COVERED) * seconds, seconds - m * passes)
    if job.buckets == 2:
        return max(0.0, seconds - backward * (m if job.zero == 2 else 1))
    return seconds


def tokens_per_second(job: Job, seconds: float) -> float:
    """Return tokens a second of all ranks, given a step's time."""
    return job.micro_batch * job.accumulation * job.dp * job.length / seconds


def utilisation(job: Job, cluster: Cluster, seconds: float) -> float:
    """Return MFU: model FLOPs a second over the peak of all ranks; recomputation does not count."""
    flops = training_flops(job.model, job.micro_batch * job.accumulation, job.length) * job.dp
    peak = cluster.card.narrow if job.bytes_per_element == 2 else cluster.card.single
    return flops / seconds / (job.ranks * peak)


def checkpoint_bytes(job: Job) -> int:
    """Return bytes of a checkpoint."""
    return CHECKPOINT_BYTES * count_parameters(job.model).total
