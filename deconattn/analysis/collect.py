"""A model over a sample of text: what each layer's maps do, without holding one."""

from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from deconattn.analysis import passes
from deconattn.analysis.indicators import Indicators, IndicatorSums
from deconattn.analysis.pre_softmax import ActivationSums, Distribution
from deconattn.errors import UserError
from deconattn.mixers import MapBlock, Mixer
from deconattn.model.decoder import Decoder

CELLS = 128


class PooledMap:
    """Means of a map over squares of tokens, at most CELLS a side, so that the map need not be held.

    Args:
        length: tokens L.
    """

    def __init__(self, length: int) -> None:
        self._side = min(length, CELLS)
        self._cell = torch.arange(length) * self._side // length
        self._sums: Tensor | None = None
        self._counts = torch.zeros(self._side, self._side, dtype=torch.float64)

    def add(self, block: MapBlock) -> None:
        """The rows of one sequence, weights [heads, n, stop]."""
        weights = block.weights.double().cpu()
        if self._sums is None:
            self._sums = torch.zeros(len(weights), self._side, self._side, dtype=torch.float64)
        visible = torch.ones(weights.shape[1:], dtype=torch.float64).tril(block.start)
        self._sums += self._pooled(weights, block)
        self._counts += self._pooled(visible[None], block)[0]

    def _pooled(self, weights: Tensor, block: MapBlock) -> Tensor:
        """[.., n, stop] -> [.., side, side]."""
        columns = weights.new_zeros(*weights.shape[:2], self._side).index_add_(2, self._cell[: block.stop], weights)
        rows = weights.new_zeros(len(weights), self._side, self._side)
        return rows.index_add_(1, self._cell[block.start : block.stop], columns)

    def means(self) -> Tensor:
        """float64 [heads, side, side]: over each cell's entries on or below the diagonal; NaN where it has none."""
        assert self._sums is not None, "no block was added"
        return self._sums / self._counts


@dataclass(frozen=True)
class LayerFindings:
    """Findings of one layer; all but the variant are None where it mixes nothing.

    Attributes:
        indicators: means over the sequences, diversity a scalar, the others [heads].
        activations: pre-softmax scores of all heads and sequences; None too where the mixer has no scores to show.
        picture: the first sequence's map, pooled, [heads, side, side]; None too where it was not asked for.
    """

    variant: str
    indicators: Indicators | None
    activations: Distribution | None
    picture: Tensor | None


class _LayerSums:
    """Adds up what one layer does."""

    def __init__(self, pictured: bool) -> None:
        self._pictured = pictured
        self._picture: PooledMap | None = None
        self._indicators: list[Indicators] = []
        self._activations = ActivationSums()

    def add(self, mixer: Mixer, inputs: passes.MixerInputs, sequences: int) -> None:
        """The maps of the first `sequences` rows of the mixer's inputs."""
        sums, draws = IndicatorSums(), self._pictured and not self._indicators
        picture = PooledMap(inputs[0].shape[1]) if draws else None
        blocks = 0
        for block in passes.map_blocks(mixer, inputs, sequences):
            blocks += 1
            sums.add(block)
            if block.scores is not None:
                self._activations.add(block.scores)
            if picture is not None:
                picture.add(block._replace(weights=block.weights[0]))
        if blocks:
            self._indicators.append(sums.indicators().map(lambda tensor: tensor.cpu()))
            self._picture = picture or self._picture

    def finite(self) -> bool:
        """Whether all that was seen is a number."""
        numbers = (tensor for one in self._indicators for tensor in one.by_name().values())
        return self._activations.finite and all(bool(tensor.isfinite().all()) for tensor in numbers)

    def findings(self, variant: str) -> LayerFindings:
        if not self._indicators:
            return LayerFindings(variant, None, None, None)
        fields = zip(*(vars(one).values() for one in self._indicators), strict=True)
        means = Indicators(*(torch.cat(parts).mean(dim=0) for parts in fields))
        picture = None if self._picture is None else self._picture.means()
        return LayerFindings(variant, means, self._activations.distribution(), picture)


def collect(
    decoder: Decoder,
    ids: Tensor,
    label: str,
    pictured: Collection[int] = (),
    advance: Callable[[int], object] = lambda sequences: None,
) -> list[LayerFindings]:
    """Run the model over the sample, layer by layer as it always runs.

    Args:
        decoder: model in evaluation mode.
        ids: int64 [N, L], L at least 4.
        label: what messages call the model.
        pictured: layers, counted from 0, of whose maps a picture is wanted.
        advance: told after each batch how many sequences it had.

    Returns:
        One entry a layer.

    Raises:
        UserError: a layer whose scores or maps are not numbers.
    """
    layers = [_LayerSums(index in pictured) for index in range(len(decoder.blocks))]
    for batch in ids.split(passes.BATCH):
        passes.observe(decoder, batch, lambda layer, *what: layers[layer].add(*what))
        for number, sums in enumerate(layers, start=1):
            if not sums.finite():
                raise UserError(
                    f"{label}: layer {number} has activations that are no finite numbers: give another checkpoint"
                )
        advance(len(batch))
    return [sums.findings(variant) for sums, variant in zip(layers, decoder.model_config.layer_variants, strict=True)]
