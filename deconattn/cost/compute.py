"""Compute of a rank, as works of a card: products, mixing, what only moves bytes, and the optimiser's update.

The works of a traced step (benchmarks/roofline) give the same times within some per cent; their bytes are where the
factors here come from (tests/cost/test_step_time.py compares).
"""

from dataclasses import dataclass, replace
from functools import lru_cache

from deconattn.cost.activations import LayerActivations, held_stream_bytes, layer_activations, reads_row
from deconattn.cost.cards import HOST_EAGER
from deconattn.cost.cluster import Cluster
from deconattn.cost.job import Job
from deconattn.cost.parameters import rank_parameters
from deconattn.cost.work import Work
from deconattn.layers.shards import largest_part
from deconattn.mixers import Workload, mixer_class
from deconattn.mixers.exchange import exchange_of
from deconattn.mixers.standard import Standard
from deconattn.model.flops import feed_forward_flops, head_forward_flops
from deconattn.model.streams import Streams, layer_output_rows, shares_fixed_part

KEPT_MOVED = 3.5
"""Bytes that operations other than products move for each byte that is kept for the backward pass."""
LOGITS_MOVED, HEAD_MOVED = 5, 35
"""Times that a logit is read or written, and bytes moved for an element of the head, by the loss."""
GRADIENT_MOVED, HANDED_MOVED = 10, 16
"""Bytes that a micro-batch's gradient moves for a parameter, added to its sum; and all sums, once they are whole."""
UPDATE_MOVED = 42
"""Bytes that AdamW moves for a parameter: gradient, master weight and moments."""
REDUCED_MOVED = 12
"""Bytes that norm and clipping move for a parameter, before it."""
BACKWARD_MIXING = 2.5
"""FLOPs of a mixing's backward pass over its forward pass, whose map is computed again."""
LAYER_LAUNCHES = 50
"""Kernels that a layer starts in both passes out of Python, of three parts one in the forward pass."""


@dataclass(frozen=True)
class StageCompute:
    """Seconds of a micro-batch on a rank of one stage, the mean over a step's, and of what a step does once.

    Attributes:
        streams: forward twice and backward once, of the fixed streams that a step holds
            (:mod:`deconattn.model.held_streams`); where it holds none, their rows are the micro-batches'.
    """

    forward: float
    backward: float
    streams: float
    update: float


def stage_compute(job: Job, cluster: Cluster, stage: int) -> StageCompute:
    """Return the compute of a rank of a pipeline stage."""
    span, tokens, width = job.spans[stage], job.micro_batch * job.part, job.model.hidden_size
    rows, kept = layer_output_rows(job.model, job.micro_batch), _layer_activations(job)
    held = held_stream_bytes(job) > 0
    of_layers: dict[tuple[str, int, int, bool], tuple[float, float]] = {}  # many are alike
    forward = backward = 0.0
    for index in span:
        variant = job.model.layer_variants[index]
        here = job.micro_batch + reads_row(mixer_class(variant))
        kind = (variant, here if held else rows[index], kept[index].kept // rows[index], held)
        if kind not in of_layers:
            of_layers[kind] = _layer(job, cluster, *kind)
        forward, backward = forward + of_layers[kind][0], backward + of_layers[kind][1]
    if span.stop == job.model.num_hidden_layers:
        flops = 3 * head_forward_flops(job.model, job.micro_batch, job.part) // job.tp
        table = largest_part(job.model.vocab_size, job.model.vocab_size, job.tp)
        moved = LOGITS_MOVED * job.bytes_per_element * tokens * table + HEAD_MOVED * table * width
        forward += _seconds(job, cluster, flops, min(width, table)) + _moving(cluster, moved)
    parameters = rank_parameters(job.model, span, job.tp).total
    backward += _moving(cluster, (GRADIENT_MOVED + HANDED_MOVED / job.accumulation) * parameters)
    updated = parameters // (job.zero_size if job.zero else 1)
    update = _moving(cluster, REDUCED_MOVED * parameters + UPDATE_MOVED * updated)
    return StageCompute(forward, backward, _streams(job, cluster) if held else 0.0, update)


def _streams(job: Job, cluster: Cluster) -> float:
    """Seconds of the fixed streams by themselves, which the last layer that reads one leaves at what it reads."""
    streams, kept = Streams.of(job.model.layer_variants), _layer_activations(job)
    rows, carried = layer_output_rows(job.model, job.micro_batch), len(streams.fixed)
    *before, reader = job.model.layer_variants[: streams.last_fixed_layer + 1]
    seconds = 0.0
    for index, variant in enumerate(before):
        forward, backward = _layer(job, cluster, variant, carried, kept[index].kept // rows[index])
        seconds += 2 * forward + backward
    mixer = mixer_class(reader)
    read = 4 * mixer.decoding.fixed_flops(mixer, job.model, job.part) if shares_fixed_part(mixer) else 0
    return seconds + _seconds(job, cluster, read // job.tp, max(1, job.model.query_size // job.tp))


def _layer(
    job: Job, cluster: Cluster, variant: str, rows: int, kept_a_row: int, held: bool = False
) -> tuple[float, float]:
    """Seconds of a layer's forward and backward pass, recomputation in the latter.

    Args:
        held: what it reads of its fixed stream is there.
    """
    config, mixer, kept = job.model, mixer_class(variant), rows * kept_a_row
    work = Workload(rows, job.length, job.bytes_per_element, job.tp)
    whole = of_all = mixer.forward_flops(config, work)
    if job.cp > 1:
        whole = exchange_of(mixer).forward_flops(mixer, config, work, job.cp)
    # What grows with the sequence mixes tokens; what does not is products with weights.
    products = min(whole, job.length * mixer.forward_flops(config, Workload(rows, 1)) * whole // of_all)
    mixing = whole - products
    if held and shares_fixed_part(mixer):
        products -= min(products, mixer.decoding.fixed_flops(mixer, config, job.part))
    narrow = min(config.hidden_size, max(1, config.query_size // job.tp))
    wide = min(config.hidden_size, max(1, config.intermediate_size // job.tp))
    kind = "attention" if issubclass(mixer, Standard) else "kernel"
    feed_forward = feed_forward_flops(config, rows, job.part)

    def passing(times: float, mixed: float, moved: float, backward: bool) -> float:
        name = "backward" if backward else "forward"
        flops, bf16 = int(mixed * mixing / job.tp), job.bytes_per_element == 2
        mix = Work("mixing", name, kind, flops, 0, 1, bf16, config.head_dim)
        device = (
            _seconds(job, cluster, times * products / job.tp, narrow)
            + _seconds(job, cluster, times * feed_forward / job.tp, wide)
            + (cluster.card.expected(mix) / cluster.speed if mixing else 0.0)
            + _moving(cluster, moved)
        )
        return max(device, LAYER_LAUNCHES * (2 if backward else 1) / 3 * HOST_EAGER)

    moved = KEPT_MOVED * kept
    forward = passing(1, 1, moved / 3, False)
    again = {"none": 0.0, "layer": 1.0, "mixer": whole / (whole + feed_forward)}
    again["mlp"] = again["layer"] - again["mixer"]
    return forward, passing(2, BACKWARD_MIXING, moved * 2 / 3, True) + again[job.recompute] * forward


def _seconds(job: Job, cluster: Cluster, flops: float, smallest: int) -> float:
    work = Work("products", "mm", "product", int(flops), 0, 1, job.bytes_per_element == 2, smallest)
    return cluster.card.expected(work) / cluster.speed


def _moving(cluster: Cluster, moved: float) -> float:
    return cluster.card.expected(Work("memory", "copy", "memory", 0, int(moved), 1)) / cluster.speed


@lru_cache(maxsize=8)
def _layer_activations(job: Job) -> tuple[LayerActivations, ...]:
    """Return activation bytes of the layers where nothing is recomputed."""
    return layer_activations(replace(job, recompute="none"))
