"""Peak memory of a rank: snapshots of the points of a step where much is allocated, and the largest of them.

A snapshot sums what ZeRO holds then (:mod:`deconattn.cost.zero`), the activations of the micro-batches in flight, and
what the computation works with:

* `start-up`: the engine is made, weights beside their flat copy.
* `loss`: all layers' activations, the logits' slice, and the gradients of head and hidden states.
* `backward of the head`: the same without logits, when the first gradient meets DeepSpeed's buffers.
* `backward of layer i`: activations up to layer i, gradients of the layers after it, and the feed-forward's working
  tensors, with what is recomputed of layer i.
* `backward of the embedding`: all gradients.
* `reduction`: gradients are reduced over the data-parallel ranks.
* `step`: AdamW and what ZeRO makes of its result.

With several micro-batches a step, every snapshot also comes with the gradients of those before.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from deconattn.cost.activations import (
    final_norm_bytes,
    held_stream_bytes,
    layer_activations,
    loss_bytes,
    p2p_bytes,
    received_bytes,
    static_bytes,
    stored_stream_bytes,
)
from deconattn.cost.job import Job
from deconattn.cost.parameters import RankParameters, rank_parameters
from deconattn.cost.zero import Memory, ZeroMemory, gather_bytes, with_muon, zero_memory


@dataclass(frozen=True)
class MemorySnapshot:
    """Memory of one rank at one point of a step."""

    stage: int
    name: str
    memory: Memory


def peak(job: Job) -> MemorySnapshot:
    """Return the largest snapshot of any rank."""
    snapshots = [snapshot for stage in range(job.pp) for snapshot in stage_snapshots(job, stage)]
    return max(snapshots, key=lambda snapshot: snapshot.memory.total)


def stage_peak(job: Job, stage: int) -> MemorySnapshot:
    """Return the largest snapshot of a pipeline stage, on its rank with the largest tensor-parallel part."""
    return max(stage_snapshots(job, stage), key=lambda snapshot: snapshot.memory.total)


def stage_snapshots(job: Job, stage: int) -> Iterator[MemorySnapshot]:
    """Yield the snapshots of a step of one pipeline stage, in order."""
    span = job.spans[stage]
    parameters = rank_parameters(job.model, span, job.tp)
    zero = zero_memory(job, parameters.total, parameters.largest)
    if job.optimizer == "muon":
        zero = with_muon(zero, job, parameters)
    stored = Memory(weights=stored_stream_bytes(job, span))
    yield MemorySnapshot(stage, "start-up", zero.startup + stored)
    in_flight, hops = job.in_flight(stage), stored + Memory(buffers=_hop_buffers(job, stage))
    for snapshot in _micro_batch(job, span, parameters, zero, in_flight, first=True):
        yield MemorySnapshot(stage, snapshot[0], zero.always + hops + snapshot[1])
    if job.accumulation > 1:
        # One more begins while the others wait, unless all are in flight at once.
        again = in_flight if job.accumulation > in_flight else in_flight - 1
        for snapshot in _micro_batch(job, span, parameters, zero, again, first=False):
            yield MemorySnapshot(stage, snapshot[0], zero.always + hops + snapshot[1])
    yield MemorySnapshot(stage, "reduction", zero.always + hops + zero.reduction)
    yield MemorySnapshot(stage, "step", zero.always + hops + zero.step)


def _micro_batch(
    job: Job, span: range, parameters: RankParameters, zero: ZeroMemory, in_flight: int, first: bool
) -> Iterator[tuple[str, Memory]]:
    """Yield name and memory of the snapshots in a micro-batch's forward and backward pass, others in flight."""
    every = _layer_activations(job)
    layers = [every[index] for index in span]
    is_first, is_last = span.start == 0, span.stop == job.model.num_hidden_layers
    static = static_bytes(job, span) + held_stream_bytes(job)
    kept = [layer.kept for layer in layers]
    around = static + (0 if is_last else p2p_bytes(job, span.stop))
    whole = sum(kept) + around + (final_norm_bytes(job) if is_last else 0)
    waiting = (in_flight - 1) * whole + (0 if is_first else received_bytes(job, span.start, in_flight))
    before = Memory() if first else zero.held
    table = (parameters.embedding or parameters.head) * job.bytes_per_element

    forward = before + zero.forward + Memory(activations=waiting + whole)
    if zero.stays and not first:
        forward += zero.backward
    if job.zero == 3:
        gather = gather_bytes(job, parameters.total, parameters.largest)
        yield "gathering weights", forward + Memory(buffers=gather)
    if is_last:
        loss = loss_bytes(job)
        yield "loss", forward + Memory(gradients=loss.gradients, logits=loss.logits)
        if loss.cast:
            yield "backward of the loss", forward + Memory(gradients=loss.gradients + loss.cast)
        arriving = Memory() if zero.stays and not first else zero.backward
        yield "backward of the head", forward + arriving + Memory(gradients=loss.cast or loss.gradients)
    else:
        yield "forward", forward

    piled = parameters.head * zero.piled if first else 0
    for index in range(len(layers) - 1, -1, -1):
        activations = waiting + around + sum(kept[: index + 1]) + layers[index].working
        # A gradient that does not stay lives until it is added to the others or moved into the bucket.
        passing = 0 if first and zero.piled else _largest_matrix(job) * job.bytes_per_element
        memory = Memory(activations=activations, gradients=piled + passing)
        yield f"backward of layer {span[index]}", before + zero.forward + zero.backward + memory
        piled += parameters.layers[index] * zero.piled if first else 0
    if is_first:
        # Its gradient is as large as the table. Where gradients do not stay, it is passing.
        activations = waiting + layers[0].input
        memory = Memory(activations=activations, gradients=piled + table)
        yield "backward of the embedding", before + zero.backward + memory


def _hop_buffers(job: Job, stage: int) -> int:
    """Bytes that DeepSpeed's pipeline holds beside the activations in flight.

    What is received goes through a buffer that stays; beside it are the gradient that was sent last, the copy that the
    next micro-batch came in and, on the last stage, whose second buffer is one more than is in flight, its own input.
    """
    first, last = stage == 0, stage == job.pp - 1
    received = 0 if first else (4 if last else 3) * p2p_bytes(job, job.spans[stage].start)
    return received + (0 if last else p2p_bytes(job, job.spans[stage].stop))


def _largest_matrix(job: Job) -> int:
    """Number of elements of a feed-forward weight on one rank."""
    return job.model.hidden_size * (-(-job.model.intermediate_size // job.tp))


_layer_activations = lru_cache(maxsize=8)(layer_activations)
