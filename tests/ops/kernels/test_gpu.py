"""Which launch parameters a GPU gets."""

import pytest
import torch
from triton.backends.compiler import GPUTarget

from deconattn.ops.kernels import gpu, taylor_states
from deconattn.ops.kernels.gpu import Gpu, gpu_of, launch_options

MI300X = GPUTarget("hip", "gfx942", 64)


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (GPUTarget("cuda", 80, 32), Gpu.OTHER),
        (GPUTarget("cuda", 89, 32), Gpu.OTHER),
        (GPUTarget("cuda", 90, 32), Gpu.HOPPER),
        (GPUTarget("cuda", 100, 32), Gpu.BLACKWELL),
        (GPUTarget("cuda", 120, 32), Gpu.OTHER),
        (MI300X, Gpu.AMD),
        (None, Gpu.HOPPER),
    ],
)
def test_kinds(target: GPUTarget | None, expected: Gpu, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(gpu, "_target", lambda: target)
    assert gpu_of(torch.empty(1)) is expected


def test_amd_has_no_bound_on_registers(monkeypatch: pytest.MonkeyPatch):
    assert launch_options(8, 3, 128) == {"num_warps": 8, "num_stages": 3, "maxnreg": 128}
    assert launch_options(4) == {"num_warps": 4}
    monkeypatch.setattr(gpu, "_target", lambda: MI300X)
    assert launch_options(8, 3, 128) == {"num_warps": 8, "num_stages": 3}


def test_gpus_of_99_kib_do_not_get_the_tiles_of_227():
    """sm_120's capability is above Hopper's, its shared memory is not."""
    small, large = (taylor_states.launch_parameters(128, torch.bfloat16, kind) for kind in (Gpu.OTHER, Gpu.BLACKWELL))
    assert small.output.tile == 64 < large.output.tile
