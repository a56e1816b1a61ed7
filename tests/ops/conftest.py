"""A recorder of the largest tensor that a computation makes, and Triton's interpreter where it works."""

import numpy as np
import pytest
import torch
from packaging.version import Version
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


@pytest.fixture
def interpreter() -> None:
    """Skip where kernels run neither on a GPU nor in Triton's interpreter."""
    triton = pytest.importorskip("triton")
    if torch.cuda.is_available():
        return
    if Version(triton.__version__) < Version("3.7") and Version(np.__version__) >= Version("2.4"):
        pytest.skip(f"the interpreter of Triton {triton.__version__} makes numbers of arrays, which NumPy 2.4 refuses")
