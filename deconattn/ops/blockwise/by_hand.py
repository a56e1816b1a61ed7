"""The blockwise paths' two passes called by hand, for where autograd records nothing: within another operator."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import NamedTuple

from torch import Tensor


class Context(SimpleNamespace):
    """What an autograd function keeps from its forward pass for its backward pass: as much of PyTorch's as ours use."""

    saved_tensors: tuple[Tensor | None, ...] = ()

    def save_for_backward(self, *tensors: Tensor | None) -> None:
        """Keep tensors; other things are kept as attributes."""
        self.saved_tensors = tensors


class Passes(NamedTuple):
    """An operation done: its output, and the gradients of queries, keys and values as a function of the output's."""

    output: Tensor
    gradients: Callable[[Tensor], tuple[Tensor, ...]]
