"""Activation memory: bytes saved for backward by one micro-batch's forward pass, on one rank."""

from dataclasses import dataclass

from deconattn.cost.job import Job
from deconattn.layers.config import ModelConfig
from deconattn.layers.shards import largest_part
from deconattn.mixers import Mixer, Workload, mixer_class
from deconattn.mixers.costs import rms_norm_bytes
from deconattn.mixers.exchange import exchange_of
from deconattn.model.held_streams import LARGEST_SHARE, held_bytes
from deconattn.model.streams import Streams, layer_output_rows, layer_rows, shares_fixed_part
from deconattn.ops.cross_entropy import logits_at_once
from deconattn.ops.logits import padded


@dataclass(frozen=True)
class LayerActivations:
    """Activation bytes of one layer.

    Attributes:
        kept: bytes saved for backward.
        input: bytes of its input, all that is kept where whole layers are recomputed.
        working: bytes beyond `kept`, less what is freed by then, at the peak of the backward pass, with what is
            recomputed. The peak is where SiLU(gate) * up is differentiated, with two gradients of the feed-forward's
            width and one of its output; or where its input has been gathered again, beside its own gradient; or where
            the mixer has been recomputed; or, where ranks that share a sequence gather it, where they differentiate the
            mixing of whole rows.
    """

    kept: int
    input: int
    working: int


@dataclass(frozen=True)
class LossBytes:
    """Bytes of head and cross-entropy, whose gradients are computed in the forward pass.

    Attributes:
        logits: the slice of logits at hand, on a CPU in fp32 beside the weights' format, and what products need.
        gradients: of the head's weight in fp32, and of the hidden states.
        cast: the head's gradient in the weights' format, where that is another.
    """

    logits: int
    gradients: int
    cast: int


def layer_activations(job: Job) -> tuple[LayerActivations, ...]:
    """Return activation bytes of every layer of the model, on a rank that holds it."""
    read, written = layer_rows(job.model, job.micro_batch), layer_output_rows(job.model, job.micro_batch)
    layers = zip(job.model.layer_variants, read, written, strict=True)
    return tuple(_layer(job, variant, here, there) for variant, here, there in layers)


def _layer(job: Job, variant: str, rows: int, output_rows: int) -> LayerActivations:
    config, size, mixer = job.model, job.bytes_per_element, mixer_class(variant)
    tokens, tokens_in, ranks = output_rows * job.part, rows * job.part, job.sequence_parallel_size
    local, local_in, inputs = tokens // ranks, tokens_in // ranks, 1 + mixer.needs_static_embeddings
    vector = size * config.hidden_size
    norms = sum(rms_norm_bytes(part, config.hidden_size, size, fused=job.gpu) for part in (local_in, local))
    if mixer.needs_static_embeddings:
        norms += rms_norm_bytes(local_in, config.hidden_size, size, fused=job.gpu)
        if job.gpu or size == 4:  # all layers keep the same embeddings: see static_bytes
            norms -= vector * local_in
    whole = gathers_rows(job, mixer)
    mixed = _mixer_bytes(job, mixer, rows)
    feed_forward = feed_forward_bytes(config, tokens, size, job.tp)
    kept_mixed, kept_feed_forward = mixed, feed_forward
    if job.gathers_again:
        kept_mixed -= 0 if whole else vector * inputs * (tokens_in - local_in)
        kept_feed_forward -= vector * (tokens - local)
    element = size * tokens * largest_part(config.intermediate_size, config.intermediate_size, job.tp)
    working = 2 * element + vector * tokens
    if job.gathers_again:  # by then gate, up and their product are gone
        # Rows are reordered where there are several: what is gathered is there twice, and its gradient as a copy.
        working = max(working, (2 if output_rows == 1 else 3) * vector * tokens - element)
    match job.recompute:
        case "mixer":
            kept_mixed = vector * inputs * local_in
            working = max(working, mixed - kept_mixed - kept_feed_forward)
        case "mlp":
            kept_feed_forward = vector * local
            working = 2 * element + vector * tokens + feed_forward - kept_feed_forward
        case "layer":
            working = 2 * element + vector * tokens + mixed + norms + feed_forward
    if whole:
        again = {"none": 0, "mlp": 0, "mixer": mixed - kept_mixed, "layer": mixed + norms}[job.recompute]
        freed = 0 if job.recompute == "layer" else kept_feed_forward
        working = max(working, again + _mixing_gradients(job, rows) - freed)
    kept = vector * local_in if job.recompute == "layer" else kept_mixed + norms + kept_feed_forward
    return LayerActivations(kept=kept, input=vector * local_in, working=working)


def gathers_rows(job: Job, mixer: type[Mixer]) -> bool:
    """Return whether a layer's mixer gathers whole rows on the ranks that share them, and keeps them."""
    work = Workload(1, job.length, job.bytes_per_element, job.tp)
    return job.cp > 1 and exchange_of(mixer).gathers(mixer, job.model, work, job.cp)


def _mixing_gradients(job: Job, rows: int) -> int:
    """Return the bytes of the gradients of queries, keys, values and what is mixed of them, of whole rows."""
    config = job.model
    queries = largest_part(config.query_size, config.num_attention_heads, job.tp)
    keys = largest_part(config.key_value_size, config.num_key_value_heads, job.tp)
    return job.bytes_per_element * rows * job.length * 2 * (queries + keys)


def _mixer_bytes(job: Job, mixer: type[Mixer], rows: int) -> int:
    work = Workload(rows, job.length, job.bytes_per_element, job.tp, job.gpu)
    if job.cp == 1:
        return mixer.activation_bytes(job.model, work)
    return exchange_of(mixer).activation_bytes(mixer, job.model, work, job.cp)


def feed_forward_bytes(config: ModelConfig, tokens: int, bytes_per_element: int, tp_size: int) -> int:
    """Bytes saved for backward by one layer's feed-forward block on one of `tp_size` tensor-parallel ranks.

    Its input is whole on every rank: what sequence parallelism gathers again is not counted here.
    """
    width = largest_part(config.intermediate_size, config.intermediate_size, tp_size)
    return bytes_per_element * tokens * (config.hidden_size + 3 * width)


def static_bytes(job: Job, span: range) -> int:
    """Bytes of the static token embeddings, one tensor for all layers of a stage that read them.

    The model's first layer keeps that tensor in any case, as its input, unless a CPU keeps an fp32 copy of a bf16 one.
    """
    rows = layer_rows(job.model, job.micro_batch)
    readers = [layer for layer in Streams.of(job.model.layer_variants).static_layers if layer in span]
    kept_as_input = span.start == 0 and (job.gpu or job.bytes_per_element == 4 or job.recompute == "layer")
    if not readers or kept_as_input:
        return 0
    return job.bytes_per_element * rows[readers[0]] * job.part // job.sequence_parallel_size * job.model.hidden_size


def held_stream_bytes(job: Job) -> int:
    """Bytes of the fixed streams that a step of several micro-batches holds (:mod:`deconattn.model.held_streams`)."""
    if job.accumulation == 1 or job.pp > 1:
        return 0
    held = held_bytes(job.model, job.length, job.bytes_per_element, job.tp, job.cp)
    return 0 if job.gpu_bytes and held > LARGEST_SHARE * job.gpu_bytes else held


def reads_row(mixer: type[Mixer]) -> bool:
    """Whether a layer has its stream's row beside each micro-batch even where that is held: it reads the row itself."""
    return mixer.fixed_stream is not None and not shares_fixed_part(mixer)


def stored_stream_bytes(job: Job, span: range) -> int:
    """Bytes of the random stream's embeddings, a buffer of the first stage's model; a text is looked up."""
    stored = span.start == 0 and "random" in Streams.of(job.model.layer_variants).fixed
    return stored * job.model.max_position_embeddings * job.model.hidden_size * job.bytes_per_element


def p2p_bytes(job: Job, layer: int) -> int:
    """P2P bytes per micro-batch to the stage from `layer` on: hidden states, and static embeddings if needed."""
    config = job.model
    tensors = 2 if layer <= Streams.of(config.layer_variants).last_static_layer else 1
    tokens = layer_rows(config, job.micro_batch)[layer] * job.part // job.sequence_parallel_size
    return tensors * job.bytes_per_element * tokens * config.hidden_size


def received_bytes(job: Job, layer: int, in_flight: int) -> int:
    """Bytes that DeepSpeed's pipeline keeps of what the stage from `layer` on receives.

    They are the tensor received into, a copy for each of its buffers, of which a stage has two at least, and one that
    the graph before holds on to. What a stage computes on is one copy more, counted as its first layer's input.
    """
    return (2 + max(2, in_flight)) * p2p_bytes(job, layer)


def final_norm_bytes(job: Job) -> int:
    """Bytes saved for backward by the final norm, and its output, not sharded."""
    tokens, width = job.micro_batch * job.part, job.model.hidden_size
    kept = rms_norm_bytes(tokens // job.sequence_parallel_size, width, job.bytes_per_element, fused=job.gpu)
    return kept + job.bytes_per_element * tokens * width


def loss_bytes(job: Job) -> LossBytes:
    """Bytes of :mod:`deconattn.ops.cross_entropy` on this rank's rows of the head; AMD's GPUs hold a product more."""
    config, size = job.model, job.bytes_per_element
    vocabulary, tokens = largest_part(config.vocab_size, config.vocab_size, job.tp), job.micro_batch * job.part
    width = padded(vocabulary) if job.gpu else vocabulary
    table = width * config.hidden_size
    at_once = min(tokens, max(1, logits_at_once(job.gpu_bytes, size) // width))
    if job.gpu:  # in the weights' format alone, beside a head of as many rows
        logits = size * (at_once * width + (table if width != vocabulary else 0))
    elif size == 4:
        logits = 4 * at_once * width
    else:  # adding a bf16 product to an fp32 sum casts it first
        logits = (4 + size) * (at_once * width + table)
    return LossBytes(
        logits=logits,
        gradients=4 * table + size * tokens * config.hidden_size,
        cast=size * vocabulary * config.hidden_size if size != 4 else 0,
    )
