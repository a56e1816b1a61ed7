"""Bytes that a rank sends in one optimiser step, by ring algorithms: an all-reduce of n bytes over r ranks sends
2 (r - 1) / r n from each, an all-gather or a reduce-scatter half of that.
"""

from dataclasses import dataclass

from deconattn.cost.activations import gathers_rows, held_stream_bytes, p2p_bytes, reads_row
from deconattn.cost.context import context_elements
from deconattn.cost.job import Job
from deconattn.cost.parameters import rank_parameters
from deconattn.cost.zero import LIVE
from deconattn.layers.shards import largest_part
from deconattn.mixers import Mixer, mixer_class
from deconattn.model.streams import Streams, layer_rows


@dataclass(frozen=True)
class Traffic:
    """Bytes that one rank sends in an optimiser step.

    Attributes:
        tensor: all-reduces of tensor parallelism, or all-gathers and reduce-scatters of sequence parallelism.
        context: what layers exchange of the sequences that ranks share.
        data: ZeRO's reduction of gradients and gathering of weights.
        pipeline: hidden states to the next stage, gradients to the one before.
        tied: the embedding's gradient, where the head is another stage's copy of it.
    """

    tensor: int
    context: int
    data: int
    pipeline: int
    tied: int

    @property
    def total(self) -> int:
        return self.tensor + self.context + self.data + self.pipeline + self.tied


def stage_traffic(job: Job, stage: int) -> Traffic:
    """Return the bytes that a rank of one pipeline stage sends."""
    span = job.spans[stage]
    return Traffic(
        tensor=_tensor(job, span),
        context=job.bytes_per_element * sum(context_elements(job)[index] for index in span),
        data=_data(job, span),
        pipeline=job.accumulation * _p2p(job, span),
        tied=_tied(job, span),
    )


def all_reduce_bytes(size: int, ranks: int) -> int:
    """Bytes that a rank sends in an all-reduce of `size` bytes; an all-gather or reduce-scatter sends half."""
    return 2 * (ranks - 1) * size // ranks


def _tensor(job: Job, span: range) -> int:
    """Bytes of tensor parallelism per step; an all-gather and a reduce-scatter are together an all-reduce.

    A cut module sums its output in the forward pass, and the gradient of each input in the backward pass. Under
    sequence parallelism an input is gathered a second time for the backward pass, where it was not kept or is
    recomputed. A recomputed layer sums its mixer's output again; recomputing stops before a sum at its end. Fixed
    streams that a step holds run by themselves, forward twice and backward once.
    """
    if job.tp == 1:
        return 0
    config, streams, m = job.model, Streams.of(job.model.layer_variants), job.accumulation
    held, row = held_stream_bytes(job) > 0, job.part * config.hidden_size
    rows = layer_rows(config, job.micro_batch)
    looked_up = "text" in streams.fixed  # the random stream is looked up nowhere
    halves = 0  # elements that an all-gather or a reduce-scatter goes over
    for index in span:
        mixer = mixer_class(config.layer_variants[index])
        layer = _layer_exchanges(job, mixer)
        if not held:
            halves += m * layer.all * rows[index] * row
            continue
        halves += m * layer.all * (job.micro_batch + reads_row(mixer)) * row
        if index < streams.last_fixed_layer:
            halves += len(streams.fixed) * (layer.all + layer.forward) * row
        elif index == streams.last_fixed_layer and not reads_row(mixer):
            halves += len(streams.fixed) * layer.reading * row
    if span.start == 0:
        of_stream = (3 if job.sequence_parallel else 4) if held else 2 * m
        halves += (2 * m * job.micro_batch + of_stream * looked_up) * row
    exchanged = halves // 2  # elements that an all-reduce goes over
    if span.stop == config.num_hidden_layers:
        exchanged += m * job.micro_batch * row
    if job.sequence_parallel:  # each rank has seen a part of the sequence: the norms' gradients are summed
        exchanged += m * (2 * len(span) + (span.stop == config.num_hidden_layers)) * config.hidden_size
    return all_reduce_bytes(exchanged * job.bytes_per_element, job.tp)


@dataclass(frozen=True)
class _Exchanges:
    """All-gathers and reduce-scatters of a layer: in both passes, the forward pass's alone, and a stream's whose
    queries and keys alone are computed, forward twice and backward once.
    """

    all: int
    forward: int
    reading: int


def _layer_exchanges(job: Job, mixer: type[Mixer]) -> _Exchanges:
    inputs = {"mixer": 1 + mixer.needs_static_embeddings, "mlp": 1}
    every = 2 * (2 + sum(inputs.values()))
    if not job.sequence_parallel:
        return _Exchanges(every + 2 * (job.recompute == "layer"), 2 * 2, 2 * inputs["mixer"])
    kept = {"mixer"} if gathers_rows(job, mixer) else set()
    gathers = [part for part in inputs if job.gathers_again and part not in kept]
    again = {part: n for part, n in inputs.items() if part in gathers or job.recompute in (part, "layer")}
    every += sum(again.values()) + (job.recompute == "layer")
    return _Exchanges(every, 2 + sum(inputs.values()), 3 * inputs["mixer"] + again.get("mixer", 0))


def _data(job: Job, span: range) -> int:
    """Bytes of ZeRO per step, over replicas and ranks that share a sequence alike.

    Gradients are reduced in fp32, unless a DeepSpeed file says otherwise. ZeRO-0 and 1 all-reduce once a step, ZeRO-2
    (all-reduce too, in DeepSpeed) and 3 (reduce-scatter) every micro-batch; updated weights are gathered once a step by
    ZeRO-1 and 2, and for every micro-batch by ZeRO-3, for the backward pass again as far as they were released; where
    neighbours keep a second copy, all but a step's first gathering are among them.
    """
    if job.zero_size == 1:
        return 0
    parameters = rank_parameters(job.model, span, job.tp).total
    reduced = all_reduce_bytes(parameters * job.reduced_bytes, job.zero_size)
    if job.zero == 0:
        return reduced
    gathered = all_reduce_bytes(parameters * job.bytes_per_element, job.zero_size) // 2
    if job.zero == 1:
        return reduced + gathered
    if job.zero == 2:
        return job.accumulation * reduced + gathered
    released = max(0, parameters - LIVE // 2)  # reused within LIVE elements of the way to the end and back
    size = 1 if job.quantized_weights else job.bytes_per_element
    first, later = job.zero_size, job.second_copy or job.zero_size
    gatherings = [(first, parameters), (later, released)] + (job.accumulation - 1) * [(later, parameters + released)]
    gathered = sum(all_reduce_bytes(elements * size, ranks) // 2 for ranks, elements in gatherings)
    return job.accumulation * (reduced // 2) + gathered


def _p2p(job: Job, span: range) -> int:
    """P2P bytes per micro-batch: activations and labels to the next stage, and gradients to the one before."""
    labels = 8 * job.micro_batch * job.part
    sent = p2p_bytes(job, span.stop) + labels if span.stop < job.model.num_hidden_layers else 0
    return sent + (p2p_bytes(job, span.start) if span.start > 0 else 0)


def _tied(job: Job, span: range) -> int:
    config = job.model
    ends = span.start == 0 or span.stop == config.num_hidden_layers
    if not config.tie_word_embeddings or job.pp == 1 or not ends:
        return 0
    table = largest_part(config.vocab_size, config.vocab_size, job.tp) * config.hidden_size
    return all_reduce_bytes(table * 4, 2)
