"""A model over a batch, as it always runs, and the maps of its mixers on the way: a block of rows at a time."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from deconattn.mixers import MapBlock, Mixer, MixerContext
from deconattn.model.decoder import Decoder, Observer

MixerInputs = tuple[Tensor, Tensor | None, MixerContext]
"""Arguments of :meth:`~deconattn.mixers.Mixer.forward`."""
BATCH = 4
"""Sequences that pass the model together."""
BLOCK_ELEMENTS = 2**19
"""Entries of a map that are held at a time, of all sequences and heads: 4 MiB in float64, near a CPU's cache."""


def hidden_states(decoder: Decoder, batch: Tensor, observe: Observer | None = None) -> Tensor:
    """Run a batch, int64 [B, L]: [B, L, d] after the final norm; exports' decoders return what Hugging Face's do."""
    with torch.inference_mode():
        embeddings = decoder.embed_tokens(batch.to(decoder.embed_tokens.weight.device))
        return decoder.forward_embedded(embeddings, batch.shape[1], observe=observe)


def observe(decoder: Decoder, batch: Tensor, look: Callable[[int, Mixer, MixerInputs, int], object]) -> Tensor:
    """Run a batch, int64 [B, L]; return hidden states [B, L, d].

    Args:
        look: told of each layer, from 0, its mixer, the mixer's inputs and B, before it runs.
    """

    def hook(layer: int) -> Callable[[Mixer, MixerInputs], None]:
        def before(mixer: Mixer, inputs: MixerInputs) -> None:
            look(layer, mixer, _wanted_rows(mixer, inputs, len(batch)), len(batch))

        return before

    hooks = [block.self_attn.register_forward_pre_hook(hook(layer)) for layer, block in enumerate(decoder.blocks)]
    try:
        return hidden_states(decoder, batch)
    finally:
        for one in hooks:
            one.remove()


def map_blocks(mixer: Mixer, inputs: MixerInputs, sequences: int, size: int | None = None) -> Iterator[MapBlock]:
    """Yield blocks of the maps of the first `sequences` rows, weights [sequences, heads, n, stop]; none without a map.

    Args:
        size: rows of a block; by default as many as :data:`BLOCK_ELEMENTS` allows.
    """
    rows, length = inputs[0].shape[:2]
    size = size or max(1, BLOCK_ELEMENTS // (rows * mixer.config.num_attention_heads * length))
    for weights, scores in mixer.map_blocks(*inputs, size):
        yield MapBlock(weights[:sequences], None if scores is None else scores[:sequences])


def _wanted_rows(mixer: Mixer, inputs: MixerInputs, sequences: int) -> MixerInputs:
    """Drop the fixed streams' rows where the layer does not read them: their maps are not asked for."""
    hidden, static, context = inputs
    if mixer.fixed_stream is not None:
        return hidden, static, context
    return hidden[:sequences], None if static is None else static[:sequences], context.rows(sequences)
