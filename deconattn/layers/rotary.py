"""Rotary position embeddings, in Hugging Face's half-rotated layout."""

from dataclasses import dataclass

import torch
from torch import Tensor

from deconattn.layers.config import ModelConfig
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
        angles = position_ids[..., None].to(precise) / config.rope_theta**exponents
        angles = torch.cat([angles, angles], dim=-1)[:, None]
        return cls(angles.cos().to(dtype), angles.sin().to(dtype))

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
