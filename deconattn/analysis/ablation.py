"""Loss without a mixer, or without a head of one: what each is worth to the model."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from deconattn.analysis import passes
from deconattn.analysis.losses import check_finite, token_losses
from deconattn.layers.norm import residual_norm
from deconattn.mixers import HeadMixer, Mixer, MixerContext, ProjectedMixer
from deconattn.model.block import Block
from deconattn.model.decoder import Decoder
from deconattn.ops.documents import Documents
from deconattn.statistics import Interval, mean_interval

Place = tuple[int, int | None, str]
"""Layer and head, from 0, and what stands in their place; no head is the whole mixer."""
MIXER = ("zero", "mean", "identity")
"""What takes the place of a mixer's output, for the sequences' rows; fixed streams go on as they always do.

- zero: nothing is added to the residual stream.
- mean: the output's mean over all tokens of the sample, one vector.
- identity: the mixer's own output where every token is a document of its own, so that each head's map is the identity
  and each token gets its own value through the output projection. Where nothing is mixed, this changes nothing.
"""
HEAD = ("zero", "mean")
"""What takes the place of a head's part of the output projection's input; the mean is over all tokens of the sample."""


@dataclass(frozen=True)
class Ablations:
    """Losses in nats, float64 [N] a sequence each: of the whole model, and by what is replaced."""

    whole: Tensor
    found: dict[Place, Tensor]
    without_heads: tuple[int, ...] = ()
    """Layers, from 0, whose heads were asked for and which have none before an output projection."""

    def loss(self, place: Place) -> Interval:
        """Loss with the replacement, over sequences."""
        return mean_interval(self.found[place].tolist())

    def difference(self, place: Place) -> Interval:
        """Loss with the replacement less that without, paired by sequence."""
        return mean_interval((self.found[place] - self.whole).tolist())


def ablate(
    decoder: Decoder,
    head: nn.Module,
    ids: Tensor,
    label: str,
    mixers: bool = True,
    heads: bool = False,
    advance: Callable[[int], object] = lambda sequences: None,
) -> Ablations:
    """Run the sample, int64 [N, L], once for means, and from each layer on once for each of its replacements.

    Args:
        head: hidden states to logits.
        mixers, heads: what to replace, each mixer's whole output or each head by itself.
        advance: told after each batch how many sequences it had.

    Raises:
        UserError: a loss that is no number, the model's own or one with a replacement.
    """
    means = _means(decoder, ids)
    places: list[list[Place]] = []
    for layer, block in enumerate(decoder.blocks):
        here: list[Place] = [(layer, None, name) for name in MIXER] if mixers else []
        if heads and output_projection(block.self_attn) is not None:
            here += [(layer, one, name) for one in range(decoder.model_config.num_attention_heads) for name in HEAD]
        places.append(here)
    whole: list[Tensor] = []
    found: dict[Place, list[Tensor]] = {place: [] for here in places for place in here}
    for batch in ids.split(passes.BATCH):
        with torch.inference_mode():
            steps: list[tuple[Block, Tensor | None, MixerContext]] = []

            def note(block: Block, _: Tensor, static: Tensor | None, context: Any, steps: list[Any] = steps) -> None:
                steps.append((block, static, context))

            whole.append(token_losses(head, passes.hidden_states(decoder, batch, note), batch).mean(dim=1))
            check_finite(whole[-1], label)
            embeddings = decoder.embed_tokens(batch.to(decoder.embed_tokens.weight.device))
            hidden = decoder.with_streams(embeddings, batch.shape[1])
            for layer, (block, static, context) in enumerate(steps):
                for place in places[layer]:
                    with _replaced(block.self_attn, place, len(batch), means[layer]):
                        changed = _finish(decoder, hidden, steps[layer:])
                    found[place].append(token_losses(head, changed, batch).mean(dim=1))
                    check_finite(found[place][-1], f"{label}, layer {layer + 1} replaced")
                hidden = block(hidden, static, context)
        advance(len(batch))
    without = tuple(
        layer for layer, block in enumerate(decoder.blocks) if heads and output_projection(block.self_attn) is None
    )
    return Ablations(torch.cat(whole), {place: torch.cat(parts) for place, parts in found.items()}, without)


def output_projection(mixer: Mixer) -> nn.Module | None:
    """Return the projection in which a mixer's heads meet, as nowhere before; None where there is none."""
    width = mixer.config.num_attention_heads * mixer.config.head_dim
    projection = getattr(mixer, "o_proj", None) if isinstance(mixer, ProjectedMixer | HeadMixer) else None
    return projection if projection is not None and projection.in_features == width else None


def _finish(decoder: Decoder, hidden: Tensor, steps: list[tuple[Block, Tensor | None, MixerContext]]) -> Tensor:
    """Run the layers that remain; return what the head reads."""
    for block, static, context in steps:
        hidden = block(hidden, static, context)
    return residual_norm(decoder.norm, hidden)[1]


def _means(decoder: Decoder, ids: Tensor) -> list[dict[str, Tensor]]:
    """Each layer's mean output [d] and, where it has heads, mean of what enters the output projection."""
    sums: list[dict[str, Tensor]] = [{} for _ in decoder.blocks]

    def add(layer: int, name: str, rows: Tensor) -> None:
        total = rows.double().sum(dim=(0, 1))
        sums[layer][name] = sums[layer][name] + total if name in sums[layer] else total

    for batch in ids.split(passes.BATCH):
        hooks, count = [], len(batch)
        for layer, block in enumerate(decoder.blocks):
            mixer = block.self_attn

            def after(_: Any, __: Any, output: Tensor, layer: int = layer, count: int = count) -> None:
                add(layer, "output", output[:count])

            def before(_: Any, inputs: tuple[Tensor], layer: int = layer, count: int = count) -> None:
                add(layer, "heads", inputs[0][:count])

            hooks.append(mixer.register_forward_hook(after))
            if (projection := output_projection(mixer)) is not None:
                hooks.append(projection.register_forward_pre_hook(before))
        try:
            passes.hidden_states(decoder, batch)
        finally:
            for hook in hooks:
                hook.remove()
    like = decoder.embed_tokens.weight.dtype
    return [{name: (total / ids.numel()).to(like) for name, total in layer.items()} for layer in sums]


@contextmanager
def _replaced(mixer: Mixer, place: Place, sequences: int, means: dict[str, Tensor]) -> Iterator[None]:
    """Hang the replacement on a mixer, for the first `sequences` rows."""
    _, head, name = place
    if head is None:
        hook = mixer.register_forward_hook(partial(_replace_output, name, sequences, means["output"]))
    else:
        size, projection = mixer.config.head_dim, output_projection(mixer)
        assert projection is not None
        part = slice(head * size, (head + 1) * size)
        value = means["heads"][part] if name == "mean" else torch.zeros_like(means["heads"][part])
        hook = projection.register_forward_pre_hook(partial(_replace_head, part, sequences, value))
    try:
        yield
    finally:
        hook.remove()


def _replace_output(name: str, sequences: int, mean: Tensor, mixer: Mixer, inputs: Any, output: Tensor) -> Tensor:
    if name == "identity":
        hidden, static, context = inputs
        instead = mixer.forward(hidden, static, _each_alone(context, hidden, sequences))[:sequences]
    else:
        instead = (mean if name == "mean" else torch.zeros_like(mean)).expand_as(output[:sequences])
    return torch.cat([instead, output[sequences:]])


def _replace_head(part: slice, sequences: int, value: Tensor, _: Any, inputs: tuple[Tensor]) -> tuple[Tensor]:
    mixed = inputs[0].clone()
    mixed[:sequences, :, part] = value
    return (mixed,)


def _each_alone(context: MixerContext, hidden: Tensor, sequences: int) -> MixerContext:
    """Return the context in which every token of the sequences is a document; each fixed stream remains one."""
    rows, length = hidden.shape[:2]
    count = torch.arange(length, device=hidden.device)[None]
    ids = count.expand(sequences, -1)
    offsets = torch.arange(sequences * length + 1, dtype=torch.int32, device=hidden.device)
    alone = Documents(ids, torch.zeros_like(ids), offsets)
    return replace(context, documents=alone.and_rows_of_one(count.expand(rows - sequences, -1)))
