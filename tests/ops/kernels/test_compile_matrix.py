"""Every kernel for every kind of GPU, compiled ahead of time: it fits the GPU, and multiplies on tensor cores."""

import pytest

from benchmarks.kernels.compile_matrix import DTYPES, HEAD_DIMS, TARGETS, compiled, faults

pytest.importorskip("triton")
KERNELS = 4 + 3 + 7 + 6 + 2 + 2 + 2 + 1
"""Of prefix average, Taylor tiles and states, fixed map, cross-entropy, RMSNorm, SwiGLU and rotation, by name."""


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("target", TARGETS)
def test_every_kernel(target: str, head_dim: int, dtype: str):
    kernels = compiled(target, head_dim, dtype)
    assert not faults(target, dtype, kernels)
    assert len({(kernel.module, kernel.name) for kernel in kernels}) == KERNELS
