"""Agreement of attention maps between layers, of one model and of several: linear CKA (Kornblith et al. 2019)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from deconattn.analysis import passes
from deconattn.mixers import MapBlock, Mixer
from deconattn.model.decoder import Decoder
from deconattn.statistics import Interval, mean_interval

LEAST = 1e-12
"""Squared norm below which a map is the uniform one but for rounding, as a share of the uniform one's own."""


@dataclass(frozen=True)
class Agreement:
    """Linear CKA of every two maps.

    An observation is a pair of tokens j <= i of a sequence, a feature a head: a_ij less the mean of row i, which is
    1 / (i + 1), from 0, where rows add up to one. So what every causal map has in common is no agreement. CKA is of one
    sequence; it does not depend on the heads' order.

    Attributes:
        maps: model and layer, both from 0, of each map.
        values: float64 [N, maps, maps]; NaN where a map is uniform, so that it has nothing to agree with.
        without: model and layer of mixers without a map.
    """

    maps: list[tuple[int, int]]
    values: Tensor
    without: list[tuple[int, int]]

    def of(self, first: int, second: int) -> Interval | None:
        """CKA of two of `maps`, over the sequences where both vary; None: there is none."""
        values = self.values[:, first, second]
        values = values[values.isfinite()]
        return mean_interval(values.tolist()) if len(values) else None


def agreement(
    decoders: Sequence[Decoder], ids: Tensor, advance: Callable[[int], object] = lambda sequences: None
) -> Agreement:
    """Run models over the same tokens, int64 [N, L], a sequence at a time, all of whose mixers' inputs are held.

    Maps are made in blocks of rows, those of all layers together; heads x heads sums are kept.
    """
    maps: list[tuple[int, int]] = []
    found: list[Tensor] = []
    for sequence in ids.split(1):
        seen: list[tuple[tuple[int, int], Mixer, passes.MixerInputs]] = []
        for model, decoder in enumerate(decoders):
            passes.observe(decoder, sequence, partial(_keep, seen, model))
        with torch.inference_mode():
            maps, values = _of_sequence(seen)
        found.append(values)
        advance(1)
    everything = [(model, layer) for model, decoder in enumerate(decoders) for layer in range(len(decoder.blocks))]
    return Agreement(maps, torch.stack(found), [place for place in everything if place not in maps])


def _keep(
    seen: list[tuple[tuple[int, int], Mixer, passes.MixerInputs]],
    model: int,
    layer: int,
    mixer: Mixer,
    inputs: passes.MixerInputs,
    _: int,
) -> None:
    seen.append(((model, layer), mixer, inputs))


def _of_sequence(
    seen: Sequence[tuple[tuple[int, int], Mixer, passes.MixerInputs]],
) -> tuple[list[tuple[int, int]], Tensor]:
    heads = sum(mixer.config.num_attention_heads for _, mixer, _ in seen)
    length = seen[0][2][0].shape[1]
    size = max(1, passes.BLOCK_ELEMENTS // (heads * length))
    streams = [(place, passes.map_blocks(mixer, inputs, 1, size)) for place, mixer, inputs in seen]
    pairs, widths, places = None, [], []
    while blocks := [(place, block) for place, stream in streams if (block := next(stream, None)) is not None]:
        places = [place for place, _ in blocks]
        features = [_features(block) for _, block in blocks]
        widths = [len(one) for one in features]
        together = torch.cat(features)
        pairs = together @ together.T + (0 if pairs is None else pairs)
    if pairs is None:
        return [], torch.zeros(0, 0, dtype=torch.float64)
    uniform = sum(1 / (row + 1) for row in range(length))  # its squared norm
    return places, _cka(pairs.cpu(), widths, LEAST * uniform)


def _features(block: MapBlock) -> Tensor:
    """The weights less their row's mean over visible tokens, float64 [heads, pairs of tokens]."""
    weights = block.weights[0].double()
    visible = torch.ones(weights.shape[1:], dtype=torch.bool, device=weights.device).tril(block.start)
    centred = weights - weights.sum(dim=-1, keepdim=True) / visible.sum(dim=-1, keepdim=True)
    return centred[:, visible]


def _cka(pairs: Tensor, widths: Sequence[int], least: float) -> Tensor:
    """CKA of each two groups of centred features, from all features' products, float64 [features, features]."""
    norms = torch.stack(
        [
            torch.stack([part.square().sum() for part in rows.split(list(widths), dim=1)])
            for rows in pairs.split(list(widths))
        ]
    ).sqrt()
    own = norms.diagonal()
    own = own.where(own > least * torch.tensor(widths), torch.nan)
    return norms.square() / (own[:, None] * own)
