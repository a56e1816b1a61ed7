"""What layers exchange of the sequences that ranks share: elements that a rank sends in a step, by layer."""

from functools import lru_cache

from deconattn.cost.activations import gathers_rows, held_stream_bytes, reads_row
from deconattn.cost.job import Job
from deconattn.mixers import Mixer, Workload, mixer_class
from deconattn.mixers.exchange import exchange_of
from deconattn.model.streams import Streams, layer_output_rows, layer_rows, shares_fixed_part


@lru_cache(maxsize=64)
def context_elements(job: Job) -> tuple[int, ...]:
    """Return the elements that a rank sends in an optimiser step for each layer: in forward and backward passes.

    A mixer that is recomputed exchanges again what it does in its forward pass. Fixed streams that a step holds run by
    themselves, forward twice and backward once (:mod:`deconattn.model.held_streams`).
    """
    if job.cp == 1:
        return (0,) * job.model.num_hidden_layers
    again = job.recompute in ("mixer", "layer")
    if held_stream_bytes(job):
        return tuple(_with_held(job, index, again) for index in range(job.model.num_hidden_layers))
    read, written = layer_rows(job.model, job.micro_batch), layer_output_rows(job.model, job.micro_batch)
    mixers = map(mixer_class, job.model.layer_variants)
    return tuple(
        job.accumulation * _sent(job, *layer, forward=1 + again) for layer in zip(mixers, read, written, strict=True)
    )


def _sent(job: Job, mixer: type[Mixer], rows: int, output_rows: int, forward: int = 1, backward: int = 1) -> int:
    """Return the elements sent in passes of a layer, of so many rows that go in and come out."""
    work = Workload(rows if gathers_rows(job, mixer) else output_rows, job.length, job.bytes_per_element, job.tp)
    exchange = exchange_of(mixer)
    sent = forward * exchange.sent_elements(mixer, job.model, work, job.cp)
    return sent + backward * exchange.sent_backward(mixer, job.model, work, job.cp)


def _with_held(job: Job, index: int, again: bool) -> int:
    """Return a layer's elements in a step that holds the fixed streams."""
    streams, mixer = Streams.of(job.model.layer_variants), mixer_class(job.model.layer_variants[index])
    carried, batch, gathers = len(streams.fixed), job.micro_batch, gathers_rows(job, mixer)
    held = _held(job, mixer)  # counted with the rows, where these are not gathered
    a_batch = _sent(job, mixer, batch + reads_row(mixer), batch, forward=1 + again) - (
        0 if gathers else (2 + again) * held
    )
    sent = job.accumulation * a_batch
    if index < streams.last_fixed_layer:
        sent += _sent(job, mixer, carried, carried, forward=2 + again) + ((3 + again) * held if gathers else 0)
    elif index == streams.last_fixed_layer:
        sent += 3 * held  # recomputing ends before the exchange, with the last tensor that is needed
    return sent


def _held(job: Job, mixer: type[Mixer]) -> int:
    """Return the elements sent of what a layer reads of its stream, where that is held."""
    if not shares_fixed_part(mixer):
        return 0
    if gathers_rows(job, mixer):
        return mixer.decoding.fixed_bytes(mixer, job.model, job.part, 1) // job.tp * (job.cp - 1)
    return _sent(job, mixer, 0, 0, backward=0)
