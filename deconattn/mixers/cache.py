"""Decoding cache of one layer: what it keeps of the tokens so far while text is generated.

Rows are sequences. A token of a row has a slot, its position in the row: padding takes none, so that a row's slots
are filled from the first on, whatever side its prompt was padded on. What lies in the slots behind a row's last token
has no meaning, and causal mixing never reads it.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from deconattn.layers.rotary import Rotary


@dataclass(frozen=True, eq=False)
class Step:
    """Position of a cached forward pass: T new tokens a row, in the slots after those that the row has filled.

    Attributes:
        rotary: cosines and sines of the new tokens' positions.
        first: nothing is held yet; the new tokens are in slots 0 to T-1.
        past: slots that are filled; where rows differ, in the longest at most.
        positions: int64 [R, T], slots of the new tokens; None where all rows fill `past` to `past` + T - 1.
        real: bool [R, T], false where a new token is padding; it comes after the row's real ones. None: all are real.
        window: slots that the new tokens may see, from the first.
        capacity: slots to hold memory for.
        static: tensors keep their shapes and addresses from the second pass on (torch.compile, CUDA graphs).
    """

    rotary: Rotary
    first: bool
    past: int
    positions: Tensor | None
    real: Tensor | None
    window: int
    capacity: int
    static: bool

    def to(self, device: torch.device) -> "Step":
        """Return the step on a device; accelerate calls it where layers are spread over several."""
        positions, real = (None if one is None else one.to(device) for one in (self.positions, self.real))
        return replace(self, rotary=self.rotary.to(device), positions=positions, real=real)

    def visible(self, tokens: int) -> Tensor | None:
        """Return the attention mask of the new tokens, bool [R or 1, tokens, window]; None if they see all slots."""
        if self.positions is None:
            if tokens == 1:
                return None
            last = torch.arange(self.past, self.past + tokens, device=self.rotary.cos.device)[None]
        else:
            last = self.positions
        return torch.arange(self.window, device=last.device) <= last[..., None]


class LayerCache:
    """Named tensors, rows first. A mixer makes an empty one and fills it in its cached passes.

    Attributes:
        fixed: what the layer needs of the fixed streams (:meth:`Decoding.fixed_part`), for all rows.
    """

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.fixed: tuple[Tensor, ...] = ()

    @property
    def croppable(self) -> bool:
        """Whether the last tokens can be taken back: a cache of tokens forgets by not reading, a sum cannot."""
        return True

    @property
    def nbytes(self) -> int:
        """Bytes held for this batch's rows."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def append(self, name: str, new: Tensor, step: Step) -> Tensor:
        """Put `new` [R, n, T, x] into its slots of the tensor `name` [R, n, capacity, x]; returns its window's part.

        No gradient flows through a cache.
        """
        held = self.tensors.get(name)
        if held is None or held.shape[2] < step.capacity:
            # Slots that nobody filled get weights of zero, and zero times what memory happens to hold may be NaN.
            larger = new.new_zeros(*new.shape[:2], step.capacity, new.shape[3])
            if held is not None:
                larger[:, :, : held.shape[2]] = held
            held = self.keep(name, larger, step)
        if step.positions is None:
            held[:, :, step.past : step.past + new.shape[2]] = new.detach()
        else:
            held.scatter_(2, step.positions[:, None, :, None].expand_as(new), new.detach())
        return held[:, :, : step.window]

    def keep(self, name: str, value: Tensor, step: Step) -> Tensor:
        """Hold `value` as the tensor `name`."""
        held = self.tensors.get(name)
        if step.static and held is not None:
            return held.copy_(value.detach())
        if step.static and value.device.type == "cuda":
            torch._dynamo.mark_static_address(value)
        self.tensors[name] = value.detach()
        return self.tensors[name]

    def select_rows(self, rows: Tensor) -> None:
        """Reorder rows: row i becomes row rows[i], int64 [R']; R' may differ from R. In place where R' is R."""
        for name, tensor in self.tensors.items():
            selected = tensor.index_select(0, rows.to(tensor.device))
            self.tensors[name] = tensor.copy_(selected) if selected.shape == tensor.shape else selected

    def reset(self) -> None:
        """Drop all tokens."""
        self.tensors.clear()


class SumCache(LayerCache):
    """A cache that is a sum over the tokens."""

    @property
    def croppable(self) -> bool:
        return False


def new_tokens_of(whole: Tensor, step: Step, tokens: int) -> Tensor:
    """Select the new tokens' slots: [R, window, x] -> [R, tokens, x]."""
    if step.positions is None:
        return whole[:, step.past : step.past + tokens]
    return whole.gather(1, step.positions[..., None].expand(-1, -1, whole.shape[-1]))
