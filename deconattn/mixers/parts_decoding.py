"""Decoding of a layer of several mixers: each part's own, with a cache of its own."""

from typing import TYPE_CHECKING

from torch import Tensor

from deconattn.layers.config import ModelConfig
from deconattn.mixers.base import Mixer
from deconattn.mixers.cache import LayerCache, Step
from deconattn.mixers.context import MixerContext
from deconattn.mixers.costs import Workload
from deconattn.mixers.decoding import Decoding

if TYPE_CHECKING:
    from deconattn.mixers.heads import HeadMixer


class PartsCache(LayerCache):
    """A cache for each part."""

    def __init__(self, parts: list[LayerCache]) -> None:
        super().__init__()
        self.parts = parts

    @property
    def croppable(self) -> bool:
        return all(part.croppable for part in self.parts)

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts)

    def select_rows(self, rows: Tensor) -> None:
        for part in self.parts:
            part.select_rows(rows)

    def reset(self) -> None:
        for part in self.parts:
            part.reset()


class PartsDecoding(Decoding["HeadMixer"]):
    """Decoding of each part by its own."""

    def __init__(self, mixers: tuple[type[Mixer], ...]) -> None:
        self._decodings = [mixer.decoding for mixer in mixers]
        readers = [mixer for mixer in mixers if mixer.fixed_stream is not None]
        self.shares_fixed_part = bool(readers) and all(mixer.decoding.shares_fixed_part for mixer in readers)

    def new_cache(self) -> LayerCache:
        return PartsCache([decoding.new_cache() for decoding in self._decodings])

    def extend(
        self, mixer: "HeadMixer", hidden: Tensor, static: Tensor | None, step: Step, cache: LayerCache
    ) -> Tensor:
        assert isinstance(cache, PartsCache)
        fixed = mixer.fixed_by_part(cache.fixed)

        def mixed(number: int) -> Tensor:
            cache.parts[number].fixed = fixed[number]
            output: Tensor = mixer.parts[number](hidden, static, step, cache.parts[number])
            return output

        return mixer.together(mixed)

    def fixed_part(
        self, mixer: "HeadMixer", hidden: Tensor, static: Tensor | None, context: MixerContext
    ) -> tuple[Tensor, ...]:
        parts = (mixer.part(number) for number in mixer.held)
        return tuple(one for part in parts for one in part.decoding.fixed_part(part, hidden, static, context))

    def prefill_flops(self, mixer: type["HeadMixer"], config: ModelConfig, work: Workload) -> int:
        return sum(part.decoding.prefill_flops(part, own, work) for part, own in mixer.of(config))

    def decode_flops(self, mixer: type["HeadMixer"], config: ModelConfig, work: Workload) -> int:
        return sum(part.decoding.decode_flops(part, own, work) for part, own in mixer.of(config))

    def cache_bytes(self, mixer: type["HeadMixer"], config: ModelConfig, work: Workload) -> int:
        return sum(part.decoding.cache_bytes(part, own, work) for part, own in mixer.of(config))

    def fixed_flops(self, mixer: type["HeadMixer"], config: ModelConfig, length: int) -> int:
        return sum(part.decoding.fixed_flops(part, own, length) for part, own in mixer.of(config))

    def fixed_bytes(self, mixer: type["HeadMixer"], config: ModelConfig, length: int, bytes_per_element: int) -> int:
        return sum(part.decoding.fixed_bytes(part, own, length, bytes_per_element) for part, own in mixer.of(config))
