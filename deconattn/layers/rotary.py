"""Rotary position embeddings, in Hugging Face's half-rotated layout."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from deconattn.layers.config import ModelConfig
from deconattn.layers.rope_scaling import RopeScaling
from deconattn.ops.rotation import rotate


# Objects of tensors compare and hash by identity: == of tensors has no truth value, and the compiler of torch 2.11 and
# 2.12 takes the hash of an object that is called before it has set the object's fields.
@dataclass(frozen=True, eq=False)
class Rotary:
    """Cosines and sines of every row's positions.

    Attributes:
        cos, sin: [R, 1, L, head_dim], or [1, 1, L, head_dim] where all rows count alike.
    """

    cos: Tensor
    sin: Tensor

    @classmethod
    def of(cls, config: ModelConfig, position_ids: Tensor, dtype: torch.dtype) -> "Rotary":
        """Compute for int64 positions [R or 1, L]; angles in fp32 (fp64 for fp64), the result in `dtype`."""
        precise = torch.float64 if dtype == torch.float64 else torch.float32
        exponents = torch.arange(0, config.head_dim, 2, dtype=precise, device=position_ids.device) / config.head_dim
        # Transformers' own operations: at position 1,000 another rounding shows in the fourth decimal of logits.
        frequencies, scaling = 1.0 / config.rope_theta**exponents, config.rope_scaling
        if scaling is not None:
            frequencies = scaled(frequencies, scaling, config.rope_theta)
        angles = position_ids[..., None].to(precise) * frequencies
        angles = torch.cat([angles, angles], dim=-1)[:, None]
        cos, sin = angles.cos(), angles.sin()
        if scaling is not None and scaling.attention_factor != 1:
            cos, sin = cos * scaling.attention_factor, sin * scaling.attention_factor
        return cls(cos.to(dtype), sin.to(dtype))

    def __call__(self, queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Rotate queries and keys, [R, heads, L, head_dim] each."""
        return rotate(queries, keys, self.cos, self.sin)

    def narrowed(self, width: int) -> "Rotary":
        """Return those of narrower heads: of so many channels, whose frequencies are spread over all."""
        half = self.cos.shape[-1] // 2
        if width == 2 * half:
            return self
        which = torch.arange(width // 2, device=self.cos.device) * half // (width // 2)
        which = torch.cat([which, which + half])
        return Rotary(self.cos[..., which], self.sin[..., which])

    def to(self, device: torch.device) -> "Rotary":
        """Return those on a device."""
        return Rotary(self.cos.to(device), self.sin.to(device))

    def row(self, row: int) -> "Rotary":
        """Return those of one row alone."""
        row = 0 if len(self.cos) == 1 else row
        return Rotary(self.cos[row].unsqueeze(0), self.sin[row].unsqueeze(0))

    def rows(self, count: int) -> "Rotary":
        """Return those of the first `count` rows."""
        return self if len(self.cos) == 1 else Rotary(self.cos[:count], self.sin[:count])


def scaled(frequencies: Tensor, scaling: RopeScaling, rope_theta: float) -> Tensor:
    """Scale frequencies in radians a token, [head_dim / 2], the highest first, of base `rope_theta`."""
    lowered = frequencies / scaling.factor
    if scaling.rope_type == "linear":
        return lowered
    if scaling.rope_type == "yarn":
        kept = 1 - _yarn_ramp(scaling, len(frequencies), rope_theta).to(frequencies)
    else:
        turns = scaling.original_max_position_embeddings * frequencies / (2 * math.pi)
        width = scaling.high_freq_factor - scaling.low_freq_factor
        kept = ((turns - scaling.low_freq_factor) / width).clamp(0, 1)
    return lowered * (1 - kept) + frequencies * kept


def _yarn_ramp(scaling: RopeScaling, pairs: int, rope_theta: float) -> Tensor:
    """Return how much of each frequency is divided by the factor, [pairs]: a line from 0 to 1 between two channels.

    The channels are those that turn `beta_fast` and `beta_slow` times within the original length, rounded outwards.
    """

    def channel(turns: float) -> float:
        longest = scaling.original_max_position_embeddings / (turns * 2 * math.pi)
        return pairs * math.log(longest) / math.log(rope_theta)

    first = max(math.floor(channel(scaling.beta_fast)), 0)
    last = min(math.ceil(channel(scaling.beta_slow)), 2 * pairs - 1)
    line = (torch.arange(pairs, dtype=torch.float64) - first) / (last - first or 0.001)
    return line.clamp(0, 1)
