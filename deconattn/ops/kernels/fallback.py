"""The one door between an operator and its kernels: where these cannot run, it computes by blocks.

A kernel may not compile for a GPU that nobody tried (an instruction, too much shared memory), or not be launched (no C
compiler, a driver that is too old). The door is within the operator, so that neither a compiled graph nor an activation
checkpoint sees another one than before, whichever pass has failed. Of what failed once, both passes are computed by
blocks from then on; the backward pass does its forward pass again, since the kernels keep other things.
"""

import os
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from deconattn.ops.backend import SLOWER, VARIABLE
from deconattn.ops.blockwise.by_hand import Passes
from deconattn.ops.notes import said_of, say

Made = TypeVar("Made")
_NOT_THE_KERNELS = (torch.OutOfMemoryError, torch.AcceleratorError)
"""What blocks would meet as well: no memory, and a GPU that has failed."""


class Attempts:
    """Kernels of an operation, tried until they cannot run.

    Args:
        operation: what the warning calls it.
    """

    def __init__(self, operation: str) -> None:
        self._operation = operation
        self._closed: set[tuple[Any, ...]] = set()

    def tried(self, kernel: Callable[[], Made], of: Tensor, *kind: object) -> Made | None:
        """What the kernels make; None where they cannot run. Where they are forced, the error is raised.

        Args:
            kernel: makes it. It must have changed nothing where it fails.
            of: tensor of the device and dtype that the kernels are compiled for.
            kind: what else they are compiled for, each shown as it is written.
        """
        here = (of.device, of.dtype, *kind)
        if here in self._closed:
            return None
        try:
            return kernel()
        except _NOT_THE_KERNELS:
            raise
        except Exception as error:  # Triton's, LLVM's, ptxas's and the driver's have no common class
            if os.environ.get(VARIABLE) == "triton":
                raise
            reason = said_of(error)
        # Only here is what the attempt had allocated free again.
        self._closed.add(here)
        shown = ", ".join(map(str, (of.dtype, *kind)))
        say(f"warning: the Triton kernels of {self._operation} ({shown}) cannot run: {reason}; {SLOWER}")
        return None


class Door(Attempts):
    """An operation's way to its kernels and to its blocks.

    Args:
        operation: what the warning calls it.
        passes: the operation by blocks.
    """

    def __init__(self, operation: str, passes: Callable[..., Passes]) -> None:
        super().__init__(operation)
        self._passes = passes

    def forward(
        self,
        kernel: Callable[..., tuple[Tensor, ...]],
        empty: Callable[..., tuple[Tensor, ...]],
        *inputs: Tensor | None,
    ) -> tuple[Tensor, ...]:
        """The output of `inputs` (queries, keys, values, and what else there is), and what the kernels keep.

        Args:
            kernel: makes them of the inputs.
            empty: makes tensors of their shapes and strides. By blocks, what would be kept is NaN: nobody reads it.
        """
        found = self._made(partial(kernel, *inputs), inputs)
        if found is None:
            found = empty(*inputs)
            found[0].copy_(self._passes(*inputs).output)
            for kept in found[1:]:
                kept.fill_(float("nan"))
        return found

    def backward(
        self,
        kernel: Callable[..., tuple[Tensor, ...]],
        empty: Callable[..., tuple[Tensor, ...]],
        grad: Tensor,
        inputs: tuple[Tensor | None, ...],
        kept: tuple[Tensor | None, ...],
    ) -> tuple[Tensor, ...]:
        """The gradients of queries, keys and values.

        Args:
            kernel: makes them of `grad`, queries, keys, values, `kept` and the other inputs.
            empty: makes tensors of their shapes and strides of the same.
            inputs: what the forward pass was given.
            kept: what it returned, the output first.
        """
        arguments = (grad, *inputs[:3], *kept, *inputs[3:])
        found = self._made(partial(kernel, *arguments), inputs)
        if found is None:
            found = empty(*arguments)
            for gradient, made in zip(found, self._passes(*inputs).gradients(grad), strict=True):
                gradient.copy_(made)
        return found

    def _made(
        self, kernel: Callable[[], tuple[Tensor, ...]], inputs: tuple[Tensor | None, ...]
    ) -> tuple[Tensor, ...] | None:
        queries, _, values = inputs[:3]
        assert isinstance(queries, Tensor)
        assert isinstance(values, Tensor)
        other = [] if queries.dtype == values.dtype else [f"queries {queries.dtype}"]
        return self.tried(kernel, values, f"head_dim {values.shape[-1]}", *other)
