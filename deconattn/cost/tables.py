"""Tables of the variants' costs: a layer's mixer alone, and whole models."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from rich.table import Table

from deconattn.cost import generation
from deconattn.cost.activations import feed_forward_bytes, final_norm_bytes, layer_activations, static_bytes
from deconattn.cost.job import Job
from deconattn.mixers import Workload, mixer_class
from deconattn.model.flops import feed_forward_flops, stream_flops, training_flops

COLUMNS = {
    "training": "training\na token",
    "prefill": "prefill\nthe batch",
    "decode": "decode\na token",
    "activations": "activations\nthe batch",
    "cache": "cache\nthe batch",
    "fixed_flops": "streams\nonce",
    "fixed_bytes": "streams\nheld once",
}
"""Attributes of :class:`Costs` and what they are called."""
BYTES = {"activations", "cache", "fixed_bytes"}
"""Columns that are bytes; the others are FLOPs."""


@dataclass(frozen=True)
class Costs:
    """Costs of a job's micro-batch, on one GPU.

    Attributes:
        training: FLOPs of a token of the batch, forward and backward pass.
        prefill: FLOPs of a first cached pass over the batch.
        decode: FLOPs of a new token, the last of the job's length, in a batch as large.
        activations: bytes kept for the backward pass, when nothing is recomputed; without logits.
        cache: bytes of the batch's decoding cache, with room for the job's length.
        fixed_flops: of the fixed streams' own pass, once for a cache.
        fixed_bytes: held of it.
    """

    training: float
    prefill: int
    decode: float
    activations: int
    cache: int
    fixed_flops: int
    fixed_bytes: int


def mixer_costs(job: Job, variant: str) -> Costs:
    """Return costs of one layer's mixer in the job's dimensions; in training its fixed stream is a row of the batch."""
    config, mixer = job.model, mixer_class(variant)
    decoding = mixer.decoding
    work = Workload(job.micro_batch, job.length, job.bytes_per_element, fused_norms=job.gpu)
    trained = replace(work, rows=work.rows + (mixer.fixed_stream is not None))
    return Costs(
        training=3 * mixer.forward_flops(config, trained) / work.tokens,
        prefill=decoding.prefill_flops(mixer, config, work),
        decode=decoding.decode_flops(mixer, config, work) / work.rows,
        activations=mixer.activation_bytes(config, trained),
        cache=decoding.cache_bytes(mixer, config, work),
        fixed_flops=decoding.fixed_flops(mixer, config, work.length),
        fixed_bytes=decoding.fixed_bytes(mixer, config, work.length, work.bytes_per_element),
    )


def feed_forward_costs(job: Job) -> Costs:
    """Return costs of one layer's feed-forward block."""
    config, rows, length = job.model, job.micro_batch, job.length
    forward = feed_forward_flops(config, rows, length)
    return Costs(
        training=3 * forward / (rows * length),
        prefill=forward,
        decode=forward / (rows * length),
        activations=feed_forward_bytes(config, rows * length, job.bytes_per_element, tp_size=1),
        cache=0,
        fixed_flops=0,
        fixed_bytes=0,
    )


def model_costs(job: Job) -> Costs:
    """Return costs of the whole model."""
    config, rows, length, size = job.model, job.micro_batch, job.length, job.bytes_per_element
    layers = sum(layer.kept for layer in layer_activations(replace(job, recompute="none")))
    return Costs(
        training=training_flops(config, rows, length) / (rows * length),
        prefill=generation.prefill_flops(config, rows, length, size),
        decode=generation.decode_flops(config, rows, length, size) / rows,
        activations=layers + static_bytes(job, range(config.num_hidden_layers)) + final_norm_bytes(job),
        cache=generation.cache_bytes(config, rows, length, size),
        fixed_flops=stream_flops(config, length),
        fixed_bytes=generation.fixed_bytes(config, length, size),
    )


def cost_tables(jobs: Mapping[str, Job], pattern: str) -> Iterator[Table]:
    """Tabulate each variant's mixer and the model that it makes in `pattern`; `jobs` by variant."""
    job = next(iter(jobs.values()))
    precision = "bf16" if job.bytes_per_element == 2 else "fp32"
    batch = f"{job.micro_batch} x {job.length} tokens, {precision}"
    layer = _table(f"One layer's mixer, {batch}", {name: mixer_costs(job, name) for name in jobs})
    layer.add_section()
    layer.add_row("feed-forward", *_cells(feed_forward_costs(job)))
    yield layer
    yield _table(f"The model, pattern {pattern}, {batch}", {name: model_costs(each) for name, each in jobs.items()})


def flop(count: float) -> str:
    """Format FLOPs with the SI prefix that leaves one to three digits before the point."""
    return _scaled(count, 1000, ("FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP", "EFLOP"))


def binary(size: float) -> str:
    """Format bytes with a binary prefix, in the same way."""
    return _scaled(size, 1024, ("B", "KiB", "MiB", "GiB", "TiB", "PiB"))


def _table(title: str, rows: Mapping[str, Costs]) -> Table:
    table = Table(title=title)
    table.add_column("variant", no_wrap=True)
    for heading in COLUMNS.values():
        table.add_column(heading, justify="right", no_wrap=True)
    for name, costs in rows.items():
        table.add_row(name, *_cells(costs))
    return table


def _cells(costs: Costs) -> Iterator[str]:
    for name in COLUMNS:
        value = getattr(costs, name)
        yield binary(value) if name in BYTES else flop(value)


def _scaled(value: float, step: int, units: tuple[str, ...]) -> str:
    """Format with three digits or, where a unit takes more, whole ones; "0" alone for nothing."""
    if not value:
        return "0"
    power = 0
    while value >= step and power < len(units) - 1:
        value, power = value / step, power + 1
    decimals = 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:,.{decimals}f} {units[power]}"
