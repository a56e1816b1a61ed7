"""Decoding cache with the interface of `transformers`."""

from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from deconattn.model.decoder import Decoder
from deconattn.model.decoding_cache import DecodingCache


class DeconAttnCache(DecodingCache, Cache):
    """:class:`deconattn.model.decoding_cache.DecodingCache` under Hugging Face's method names.

    Each layer keeps what its variant needs, so there are no keys and values to be had at :meth:`update`, which
    Hugging Face's own attention layers call: a model of theirs cannot use it.
    """

    def __init__(self, model: Decoder, limit: int | None = None, static: bool = False) -> None:
        self.offloading = False  # Hugging Face reads it
        self.layer_class_to_replicate = None
        DecodingCache.__init__(self, model, limit, static)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(seen={self.seen}, nbytes={self.nbytes})"

    def update(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        raise TypeError("a DeconAttnCache is for a DeconAttn model: another model's attention cannot use it")

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.seen

    def get_max_length(self, layer_idx: int | None = None) -> int:
        return -1 if self.limit is None else self.limit

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return self.seen + query_length, 0

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.select_rows(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        self.select_rows(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        self.select_rows(torch.arange(self.rows).repeat_interleave(repeats))

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last -`tokens_to_remove` tokens."""
        super().crop(-tokens_to_remove)

    def activate_past_recording(self) -> None:
        """Do nothing: cached tokens can be removed without a record, and sums cannot be."""

    @property
    def batch_size(self) -> int:
        return self.rows

    @property
    def is_compileable(self) -> bool:
        return self.static

    @property
    def is_initialized(self) -> bool:
        return not self.is_empty

    @property
    def is_croppable(self) -> bool:
        return self.croppable

    @property
    def is_sliding(self) -> list[bool]:
        return [False] * len(self.layers)

    @property
    def is_linear(self) -> list[bool]:
        return [False] * len(self.layers)

    @property
    def is_dummy(self) -> list[bool]:
        return [False] * len(self.layers)
