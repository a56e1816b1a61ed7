"""The kinds of GPUs for which launch parameters differ, and what every launch tells the compiler."""

from enum import Enum, auto

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.language.target_info import current_target


class Gpu(Enum):
    """A kind of GPU, by the shared memory that a program may take and by its matrix instructions."""

    HOPPER = auto()
    """sm_90: 227 KiB, wgmma."""
    BLACKWELL = auto()
    """sm_100 and 103, of data centres: 227 KiB."""
    OTHER = auto()
    """NVIDIA's others from sm_80 on: 99 KiB is the least (sm_86, 89, 120), mma."""
    AMD = auto()
    """AMD's: 64 KiB (gfx942), mfma."""


SPACIOUS = (Gpu.HOPPER, Gpu.BLACKWELL)
"""With more than twice the shared memory of the others."""


def gpu_of(tensor: Tensor) -> Gpu:
    """The kind of a tensor's GPU, as Triton compiles for it; Hopper for the interpreter."""
    with torch.cuda.device_of(tensor):
        target = _target()
    if target is None:
        return Gpu.HOPPER
    if target.backend == "hip":  # whose gfx942 gives itself NVIDIA's number (9, 4) elsewhere
        return Gpu.AMD
    return {9: Gpu.HOPPER, 10: Gpu.BLACKWELL}.get(int(target.arch) // 10, Gpu.OTHER)


def launch_options(warps: int, stages: int | None = None, registers: int | None = None) -> dict[str, int]:
    """What a launch on the current GPU tells the compiler.

    Args:
        stages: of loops that name none themselves.
        registers: most for a thread; AMD's compiler has no such option.
    """
    options = {"num_warps": warps}
    if stages is not None:
        options["num_stages"] = stages
    target = _target()
    if registers is not None and (target is None or target.backend == "cuda"):
        options["maxnreg"] = registers
    return options


def _target() -> GPUTarget | None:
    """What Triton compiles for; nothing in its interpreter, which need not look for drivers at every launch."""
    return None if triton.knobs.runtime.interpret else current_target()
