"""Memory of DeepSpeed 0.19.8 beside the model, by ZeRO stage: AdamW's states and its own flat buffers.

P parameters on this rank in tensors of w bytes an element, D ranks that hold the same ones (data-parallel ones, and
those that share a sequence), B = `reduce_bucket_size`. Read in `runtime/zero/stage_1_and_2.py`, `stage3.py`,
`runtime/bf16_optimizer.py` and `engine.py`, and checked by measurement (`benchmarks/training/memory.py`).

* ZeRO-0 (fp32): weights 4P, moments 8P, gradients 4P. Reducing copies the gradients into flat buffers of up to
  5e8 elements, also where there is one rank.
* ZeRO-1, bf16 is another class (`BF16_Optimizer`): weights 2P; an fp32 sum of gradients 4P, whole, all the time;
  master weights and moments 12P/D; a bf16 gradient lives until it is added to its sum. Reducing copies the fp32 sums,
  and casts the copy where a DeepSpeed file has it communicate in bf16.
* ZeRO-1, fp32 and ZeRO-2: weights wP, master weights and moments 12P/D. Gradients are reduced through a bucket of wB
  bytes, whole whatever P is, from the first gradient of a backward pass to its end (ZeRO-1: to the end of the step's
  last backward pass), and copied once more to be reduced. ZeRO-1 holds the gradients of a step, wP, beside it; ZeRO-2
  moves each into the bucket as it comes, and the sums of this rank's part are 4P/D; in bf16 what is copied is cast to
  fp32 too, the format that it communicates in. Under a pipeline ZeRO-1 in fp32
  makes a second bucket to reduce.
* ZeRO-3: weights wP/D, master weights and moments 12P/D, gradients 4P/D, and a bucket of B elements in the format that
  it communicates in (fp32 in bf16 too, twice a weight's bytes), all the time. Gathered weights are released when they
  are not used again within 1e9 elements, so up to 1e9 of them are whole from the forward pass to the backward pass; a
  gather needs them twice. Gradients are cast as they are moved into the bucket, and reducing copies it. A single rank
  gathers nothing. With hpZ the second copy is another wP/N, N ranks sharing it.

Muon keeps one moment of a matrix in the place of two, 4 bytes less an element wherever the moments are; its step works
on a whole matrix at a time.
"""

from dataclasses import dataclass, fields, replace

from deconattn.cost.job import Job
from deconattn.cost.parameters import RankParameters

FLAT = 500_000_000
"""Elements that DeepSpeed reduces at once where no bucket is configured (`MEMORY_OPT_ALLREDUCE_SIZE`)."""
LIVE = 1_000_000_000
"""DeepSpeed's `stage3_max_reuse_distance` and `stage3_max_live_parameters`, elements."""
PREFETCH = 50_000_000
"""DeepSpeed's `stage3_prefetch_bucket_size`, elements."""


@dataclass(frozen=True)
class Memory:
    """Bytes on one rank by kind; `buffers` are DeepSpeed's own."""

    weights: int = 0
    gradients: int = 0
    optimizer: int = 0
    buffers: int = 0
    activations: int = 0
    logits: int = 0

    def __add__(self, other: "Memory") -> "Memory":
        return Memory(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    @property
    def total(self) -> int:
        return sum(getattr(self, f.name) for f in fields(self))


@dataclass(frozen=True)
class ZeroMemory:
    """Memory of one rank between steps, and what each phase of a step adds to it.

    Attributes:
        startup: peak while the engine is made.
        always: between steps.
        held: from one micro-batch's backward pass to the next one's.
        forward: while a micro-batch is computed.
        backward: from the first gradient of a backward pass to its end.
        stays: whether that stays until the gradients are reduced, through the next micro-batches.
        piled: bytes an element by which gradients pile up in a backward pass.
        reduction: when gradients are reduced after the last backward pass.
        step: in the optimiser step.
    """

    startup: Memory
    always: Memory
    held: Memory
    forward: Memory
    backward: Memory
    stays: bool
    piled: int
    reduction: Memory
    step: Memory


MUON_WORK = 20
"""Bytes an element of a matrix in Muon's step: new momentum, update and weights in fp32, and four copies in bf16."""


def zero_memory(job: Job, parameters: int, largest: int) -> ZeroMemory:
    """Return the memory of a rank with `parameters` elements, the largest tensor of `largest`, under AdamW."""
    if job.zero == 0:
        return _without(job, parameters)
    if job.zero == 3:
        return _stage_3(job, parameters, largest)
    if job.zero == 1 and job.bytes_per_element == 2:
        return _bf16_optimizer(job, parameters, largest)
    return _stage_1_and_2(job, parameters, largest)


def _without(job: Job, p: int) -> ZeroMemory:
    always = Memory(weights=4 * p, optimizer=8 * p)
    gradients = Memory(gradients=4 * p)
    return ZeroMemory(
        startup=always,
        always=always,
        held=gradients,
        forward=Memory(),
        backward=Memory(),
        stays=False,
        piled=4,
        reduction=gradients + Memory(buffers=4 * min(p, FLAT)),
        step=gradients,
    )


def _bf16_optimizer(job: Job, p: int, largest: int) -> ZeroMemory:
    always = Memory(weights=2 * p, gradients=4 * p, optimizer=12 * _part(p, job.zero_size))
    flat = min(p, FLAT) * (4 if job.reduced_bytes == 4 else 4 + job.reduced_bytes)
    adding = (2 if job.gpu else 2 + 4) * largest  # a CPU casts a whole gradient to add it to its sum
    return ZeroMemory(
        startup=always,
        always=always,
        held=Memory(),
        forward=Memory(),
        backward=Memory(),
        stays=False,
        piled=0,
        reduction=Memory(buffers=max(flat, adding)),
        step=_gathering(job, p),
    )


def _stage_1_and_2(job: Job, p: int, largest: int) -> ZeroMemory:
    size, part = job.bytes_per_element, _part(p, job.zero_size)
    fp32 = size == 4
    always = Memory(weights=size * p, optimizer=12 * part)
    bucket = Memory(buffers=size * job.bucket * job.buckets)
    # In fp32 a single rank's gradients already lie side by side in the bucket.
    copy = (size + _cast(job)) * min(p, job.bucket) if job.zero_size > 1 or not fp32 else 0
    sums = Memory(gradients=4 * part)
    if job.zero == 1:
        held, piled = Memory(gradients=size * p), size
        backward = bucket
        if p > job.bucket:  # what is reduced moves out of the bucket before the rest has moved in
            reduction = bucket + sums + Memory(gradients=size * p)
        else:
            reduction = bucket + Memory(buffers=max(copy, 4 * part))
        if job.pp > 1:  # reduce_gradients(pipeline_parallel=True) makes a second bucket before it empties .grad
            reduction = bucket + bucket + Memory(gradients=size * p)
    else:
        held, piled = sums, 0
        backward = bucket
        if p > job.bucket:  # it is reduced in the middle of a backward pass; bf16 adds to the sums it holds
            backward += Memory(buffers=copy, gradients=4 * part if fp32 or job.accumulation == 1 else 0)
        if fp32:
            again = Memory(buffers=max(copy, 4 * part))
            reduction = bucket + again + (sums if job.accumulation > 1 else Memory())
        else:
            # A CPU casts a bf16 gradient before it adds it to its fp32 sum; a GPU's kernel adds them as they are.
            reduction = bucket + sums + Memory(buffers=copy + (0 if job.gpu else 4 * min(largest, part)))
    # The step flattens fp32 sums once more; a CPU squares in double precision for the norm.
    step = sums + Memory(buffers=4 * part if fp32 else 0)
    norm = sums + Memory(buffers=0 if job.gpu else 8 * min(largest, part))
    gathering = _gathering(job, p)
    return ZeroMemory(
        startup=max(always, Memory(weights=2 * size * p), key=lambda memory: memory.total),
        always=always,
        held=held,
        forward=Memory(),
        backward=backward,
        stays=job.zero == 1,
        piled=piled,
        reduction=reduction,
        step=max(step, norm, gathering, key=lambda memory: memory.total),
    )


def _stage_3(job: Job, p: int, largest: int) -> ZeroMemory:
    size, part = job.bytes_per_element, _part(p, job.zero_size)
    bucket = Memory(buffers=job.reduced_bytes * job.bucket)
    second = _part(p, job.second_copy) if job.second_copy else 0
    always = Memory(weights=size * (part + second), optimizer=12 * part, gradients=4 * part) + bucket
    copy = job.reduced_bytes * min(p, job.bucket)
    reduction = Memory(buffers=copy if job.gpu else 2 * copy)  # gloo reduces a copy
    return ZeroMemory(
        startup=max(always, Memory(weights=size * p), key=lambda memory: memory.total),
        always=always,
        held=Memory(),
        forward=Memory(weights=size * min(p, LIVE) if job.zero_size > 1 else 0),
        backward=Memory() if p <= job.bucket else Memory(buffers=copy),
        stays=False,
        piled=0,
        reduction=reduction,
        step=Memory(buffers=4 * part),
    )


def with_muon(memory: ZeroMemory, job: Job, parameters: RankParameters) -> ZeroMemory:
    """Return AdamW's memory with Muon in its place for the matrices of the hidden layers."""
    saved = Memory(optimizer=-4 * (_part(parameters.hidden, job.zero_size) if job.zero else parameters.hidden))
    return replace(
        memory,
        startup=memory.startup + saved if memory.startup.optimizer else memory.startup,
        always=memory.always + saved,
        step=memory.step + Memory(buffers=MUON_WORK * parameters.largest_hidden),
    )


def gather_bytes(job: Job, parameters: int, largest: int) -> int:
    """Bytes of ZeRO-3's flat all-gather buffer, beside the weights that are filled from it."""
    if job.zero_size == 1:
        return 0
    return job.bytes_per_element * min(parameters, PREFETCH + largest)


def _gathering(job: Job, p: int) -> Memory:
    """Return memory of gathering updated weights: in place with NCCL; gloo gathers them in a copy."""
    return Memory(buffers=0 if job.gpu else job.bytes_per_element * p)


def _cast(job: Job) -> int:
    """Return bytes an element of the copy in the format that gradients are reduced in, where it is another one."""
    return job.reduced_bytes if job.reduced_bytes != job.bytes_per_element else 0


def _part(p: int, ranks: int) -> int:
    return -(-p // ranks)
