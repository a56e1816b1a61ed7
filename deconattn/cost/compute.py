"""Compute of a rank, as works of a card: products, mixing, what only moves bytes, and the optimiser's update.

The works of a traced step (benchmarks/roofline) give the same times within some per cent; their bytes are where the
factors here come from (tests/cost/test_step_time.py compares).
"""

from dataclasses import dataclass, replace
from functools import lru_cache

from deconattn.cost.activations import LayerActivations, layer_activations
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
from deconattn.model.streams import layer_output_rows

KEPT_MOVED = 3.5
"""Bytes that operations other than products move for each byte that is kept for the backward pass."""
LOGITS_MOVED, HEAD_MOVED = 5, 35
"""Times that a logit is read or written, and bytes moved for an element of the head, by the loss."""
GRADIENT_MOVED = 26
"""Bytes that a micro-batch's gradient moves for a parameter: added to its sum, and cleared."""
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
    """Seconds of one micro-batch on a rank of one stage, and of what a step does once."""

    forward: float
    backward: float
    update: float


def stage_compute(job: Job, cluster: Cluster, stage: int) -> StageCompute:
    """Return the compute of a rank of a pipeline stage."""
    span, tokens, width = job.spans[stage], job.micro_batch * job.part, job.model.hidden_size
    rows, kept = layer_output_rows(job.model, job.micro_batch), _layer_activations(job)
    of_layers: dict[tuple[str, int, int], tuple[float, float]] = {}  # many are alike
    forward = backward = 0.0
    for index in span:
        kind = job.model.layer_variants[index], rows[index], kept[index].kept
        if kind not in of_layers:
            of_layers[kind] = _layer(job, cluster, *kind)
        forward, backward = forward + of_layers[kind][0], backward + of_layers[kind][1]
    if span.stop == job.model.num_hidden_layers:
        flops = 3 * head_forward_flops(job.model, job.micro_batch, job.part) // job.tp
        table = largest_part(job.model.vocab_size, job.model.vocab_size, job.tp)
        moved = LOGITS_MOVED * job.bytes_per_element * tokens * table + HEAD_MOVED * table * width
        forward += _seconds(job, cluster, flops, min(width, table)) + _moving(cluster, moved)
    parameters = rank_parameters(job.model, span, job.tp).total
    backward += _moving(cluster, GRADIENT_MOVED * parameters)
    updated = parameters // (job.zero_size if job.zero else 1)
    update = _moving(cluster, REDUCED_MOVED * parameters + UPDATE_MOVED * updated)
    return StageCompute(forward, backward, update)


def _layer(job: Job, cluster: Cluster, variant: str, rows: int, kept: int) -> tuple[float, float]:
    """Seconds of a layer's forward and backward pass, recomputation in the latter."""
    config, mixer = job.model, mixer_class(variant)
    work = Workload(rows, job.length, job.bytes_per_element, job.tp)
    whole = of_all = mixer.forward_flops(config, work)
    if job.cp > 1:
        whole = exchange_of(mixer).forward_flops(mixer, config, work, job.cp)
    # What grows with the sequence mixes tokens; what does not is products with weights.
    products = min(whole, job.length * mixer.forward_flops(config, Workload(rows, 1)) * whole // of_all)
    mixing = whole - products
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
