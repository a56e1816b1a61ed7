"""Streams beside the hidden states: which layers read them, and the rows that each layer computes for them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deconattn.errors import UserError
from deconattn.layers.config import ModelConfig
from deconattn.mixers import FixedStream, Mixer, mixer_class

if TYPE_CHECKING:
    from deconattn.model.decoder import Decoder


@dataclass(frozen=True)
class Streams:
    """Fixed and static streams of a stack of layers.

    Attributes:
        fixed: the fixed streams, in the order of their rows, which follow the batch's.
        last_fixed_layer: the last layer that reads one; none carries them beyond. -1: none reads one.
        static_layers: layers that read the static token embeddings.
    """

    fixed: tuple[FixedStream, ...]
    last_fixed_layer: int
    static_layers: tuple[int, ...]

    @classmethod
    def of(cls, variants: Sequence[str]) -> "Streams":
        """Return the streams of layers of these variants."""
        mixers = [mixer_class(variant) for variant in variants]
        readers = {index: mixer.fixed_stream for index, mixer in enumerate(mixers) if mixer.fixed_stream is not None}
        static = tuple(index for index, mixer in enumerate(mixers) if mixer.needs_static_embeddings)
        return cls(tuple(sorted(set(readers.values()))), max(readers, default=-1), static)

    @property
    def last_static_layer(self) -> int:
        """Index of the last layer that reads the static embeddings, -1 if none does."""
        return max(self.static_layers, default=-1)


def is_ours(mixer: type[Mixer]) -> bool:
    """Whether a mixer is the package's: it reads weights, rows and the stream, and draws nothing."""
    return all(part.__module__.startswith("deconattn.mixers.") for part in mixer.made_of())


def shares_fixed_part(mixer: type[Mixer]) -> bool:
    """Whether a layer can read what was computed of its stream once; a third party's may draw random numbers there."""
    return mixer.decoding.shares_fixed_part and is_ours(mixer)


def layer_rows(config: ModelConfig, batch: int) -> tuple[int, ...]:
    """Return rows of each layer's input: `batch`, and the fixed streams up to the last layer that reads one."""
    streams = Streams.of(config.layer_variants)
    carried = len(streams.fixed)
    return tuple(
        batch + (carried if index <= streams.last_fixed_layer else 0) for index in range(config.num_hidden_layers)
    )


def layer_output_rows(config: ModelConfig, batch: int) -> tuple[int, ...]:
    """Return rows of each layer's output: the next layer's input."""
    return (*layer_rows(config, batch)[1:], batch)


def check_length(model: "Decoder", tokens: int) -> None:
    """Raise UserError if a sequence of `tokens` tokens is beyond the model's fixed stream."""
    longest = model.model_config.max_position_embeddings
    if model.streams and tokens > longest:
        raise UserError(
            f"a sequence of {tokens} tokens is beyond the fixed stream of {longest}: "
            "shorten it, or train with a longer --seq-len"
        )
