"""Context of a layer: what it may know of the batch beside the hidden states."""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from deconattn.layers.linear import rows as some_rows
from deconattn.layers.rotary import Rotary
from deconattn.ops.documents import Documents

FixedStream = Literal["random", "text"]


@dataclass(frozen=True, eq=False)
class MixerContext:
    """Positions, document boundaries and fixed streams of the batch, which each layer gets beside the hidden states.

    Rows are the batch's sequences followed by the fixed streams, each a sequence like any other.

    Attributes:
        rotary: cosines and sines of every row's positions.
        documents: boundaries in packed rows, or None where a row is one document.
        fixed_rows: row of each fixed stream that the model carries, counted from the end (-1 is the last).
        output_rows: how many rows of the result anyone reads, from the first; None is all. A mixer need not compute
            the others, and may leave them out.
        fixed: what the layer needs of its fixed stream, where that is held: its decoding's `fixed_part`. There are no
            rows of the streams then. Given to those alone whose decoding says `shares_fixed_part`.
    """

    rotary: Rotary
    documents: Documents | None
    fixed_rows: dict[FixedStream, int]
    output_rows: int | None = None
    fixed: tuple[Tensor, ...] | None = None

    @property
    def document_ids(self) -> Tensor | None:
        """Document number of each token, int64 [R, L]; None where a row is one document."""
        return None if self.documents is None else self.documents.ids

    def read(self, rows: Tensor) -> Tensor:
        """Return those of [R, ..] or fewer that anyone reads; where that is all, the tensor itself.

        The backward pass of a slice copies its gradient, that of a whole tensor's too.
        """
        return rows if self.output_rows is None else some_rows(rows, slice(self.output_rows))

    def to(self, device: torch.device) -> "MixerContext":
        """Return the context on a device; accelerate calls it where layers are spread over several."""
        documents = None if self.documents is None else self.documents.to(device)
        return replace(self, rotary=self.rotary.to(device), documents=documents)

    def rows(self, count: int) -> "MixerContext":
        """Return the context of the first `count` rows alone, once no later layer reads the fixed streams."""
        documents = None if self.documents is None else self.documents.rows(count)
        return MixerContext(self.rotary.rows(count), documents, {})
