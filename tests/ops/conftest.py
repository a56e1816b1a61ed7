"""A recorder of the largest tensor that a computation makes."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LargestTensor(TorchDispatchMode):
    """While active, `elements` is the size in memory of the largest tensor that any operation returned.

    Views count as what they view, so an expanded tensor is as small as its memory. Works on the `meta` device,
    where shapes cost nothing.
    """

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0
        self.operations = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.operations += 1
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                elements = tensor.untyped_storage().nbytes() // tensor.itemsize
                self.elements = max(self.elements, elements)
        return result


@pytest.fixture
def largest_tensor() -> LargestTensor:
    return LargestTensor()
