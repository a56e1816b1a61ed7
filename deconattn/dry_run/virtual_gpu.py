"""A GPU and a world that are not there: meta tensors that say they are on `cuda:0`, ranks that never answer.

PyTorch's fake tensors would do the former, but their autograd needs a CUDA build. A meta tensor needs none; all that
code in Python asks of it, and where it wants others to be, is answered here. What PyTorch does by another way on a GPU
than on meta (attention, RMSNorm) is taken that way, as it keeps other things for the backward pass.

For a process that does nothing else: what is replaced is not put back.
"""

import logging
import os
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed
from torch import Tensor
from torch.autograd.graph import _engine_run_backward
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils import checkpoint

META, GPU = torch.device("meta"), torch.device("cuda", 0)
MULTIPROCESSORS = 132
"""Of an H100: some kernels size their scratch memory by it."""


class VirtualGpu(TorchFunctionMode):
    """Answers for meta tensors as if they lay on a GPU, while it is entered."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func == _DEVICE:
            device = func(*args)
            return GPU if device.type == "meta" else device
        if func == _IS_CUDA:
            return args[0].is_meta
        if args and isinstance(args[0], Tensor) and args[0].is_meta:
            if func in _HOST_VALUES:
                return _HOST_VALUES[func](args[0])
            if func in _AS_ON_A_GPU:
                return _AS_ON_A_GPU[func](*args, **kwargs)
        if func is torch.zeros_like and kwargs.get("device") == "meta":
            # DeepSpeed notes shapes this way: no memory is meant.
            return torch.zeros((), dtype=args[0].dtype, device=META).expand(args[0].shape)
        args = tuple(map(_off_the_gpu, args))
        result = func(*args, **{name: _off_the_gpu(value) for name, value in kwargs.items()})
        if func is torch.tensor and result.is_meta and isinstance(args[0], (int, float)):
            result.known = float(args[0])  # the host has made it; a minimum over ranks that are alike leaves it
        return result


_DEVICE, _IS_CUDA = Tensor.device.__get__, Tensor.is_cuda.__get__  # type: ignore[attr-defined]
_HOST_VALUES: dict[Any, Callable[[Tensor], Any]] = {
    Tensor.item: lambda tensor: _known(tensor) if tensor.is_floating_point() else int(_known(tensor)),
    Tensor.__int__: lambda tensor: int(_known(tensor)),
    Tensor.__float__: lambda tensor: _known(tensor),
    Tensor.__bool__: lambda tensor: bool(_known(tensor)),
    Tensor.tolist: lambda tensor: [1.0] * tensor.numel(),
    Tensor.cpu: lambda tensor: torch.ones(tensor.shape, dtype=tensor.dtype),
    Tensor.pin_memory: lambda tensor: tensor,
}
"""What the host would read: nobody knows, and ones are finite."""


def _known(scalar: Tensor) -> float:
    return getattr(scalar, "known", 1.0)


def _off_the_gpu(value: Any) -> Any:
    """Return the device meta for a GPU, named or not, and anything else as it is."""
    if isinstance(value, torch.device):
        return META if value.type == "cuda" else value
    return META if isinstance(value, str) and value.startswith("cuda") else value


def _attention(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    **_: Any,
) -> Tensor:
    """Attend as PyTorch does on a GPU: a fused kernel, which keeps an fp32 number a query and head."""
    if attn_mask is None and queries.dtype != torch.float32:
        return torch.ops.aten._scaled_dot_product_flash_attention(queries, keys, values, 0.0, is_causal)[0]
    fused = torch.ops.aten._scaled_dot_product_efficient_attention
    if attn_mask is not None:
        shape = (*queries.shape[:3], keys.shape[2])
        attn_mask = torch.zeros((), dtype=queries.dtype, device=META).expand(shape)
    return fused(queries, keys, values, attn_mask, queries.requires_grad, 0.0, is_causal)[0]


class _FusedNorm(torch.autograd.Function):
    """RMSNorm in one kernel: it keeps its input and one fp32 number a vector."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(hidden, weight, hidden.new_empty(hidden.shape[:-1], dtype=torch.float32))
        return torch.empty_like(hidden)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        hidden, weight, _ = ctx.saved_tensors
        return torch.empty_like(hidden), torch.empty_like(weight)


def _rms_norm(
    hidden: Tensor, normalized_shape: Any = None, weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    assert weight is not None
    return _FusedNorm.apply(hidden, weight)


_AS_ON_A_GPU: dict[Any, Callable[..., Tensor]] = {
    functional.scaled_dot_product_attention: _attention,
    functional.rms_norm: _rms_norm,
    torch.rms_norm: _rms_norm,
}


def enter_virtual_world(rank: int, ranks: int, gpu_bytes: int) -> None:
    """Make this process rank `rank` of `ranks`, with a GPU of `gpu_bytes`; collectives return at once."""
    os.environ.update(RANK=str(rank), LOCAL_RANK="0", WORLD_SIZE=str(ranks), MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    _replace_gpu(gpu_bytes)
    from torch.testing._internal.distributed.fake_pg import FakeStore

    torch.distributed.init_process_group("fake", store=FakeStore(), rank=rank, world_size=ranks)
    import deepspeed

    deepspeed.init_distributed(dist_backend="nccl", verbose=False)
    _replace_in_deepspeed()


def _replace_gpu(gpu_bytes: int) -> None:
    properties = SimpleNamespace(
        total_memory=gpu_bytes, multi_processor_count=MULTIPROCESSORS, major=9, minor=0, name="virtual"
    )
    torch.cuda.get_device_properties = lambda *_: properties  # type: ignore[assignment]
    torch.cuda.get_device_capability = lambda *_: (9, 0)
    torch.autograd._engine_run_backward = _backward
    checkpoint._infer_device_type = lambda *_: "cpu"  # whose random state it keeps
    # It compares what is computed again without the device, which is meta or the GPU by who asks.
    checkpoint._allowed_determinism_checks_to_fns["default"] = lambda tensor: {"shape": tensor.shape}
    torch.nn.Module.to_empty = lambda module, **_: module  # type: ignore[method-assign]  # what is on meta is on the GPU
    from deconattn.ops import flash, ring_attention
    from deconattn.train import update

    flash.package = lambda queries: None
    ring_attention._flash_is_right = lambda *_: True  # type: ignore[assignment]  # what it compares is not there
    torch.distributed.batch_isend_irecv = _one_by_one  # type: ignore[assignment]
    update.Readback = _Readback  # type: ignore[misc,assignment]


def _replace_in_deepspeed() -> None:
    """Leave out DeepSpeed's looks at memory, and those at what other ranks have said."""
    from deepspeed.runtime import bf16_optimizer
    from deepspeed.runtime.zero import partitioned_param_coordinator, stage3, stage_1_and_2

    for module in (bf16_optimizer, stage3, stage_1_and_2):
        module.see_memory_usage = lambda *_, **__: None
    partitioned_param_coordinator.assert_ints_same_as_other_ranks = lambda *_: None


def _backward(*args: Any, **kwargs: Any) -> Any:
    """Run autograd's engine with the mode entered, which PyTorch leaves for it: hooks and formulas are Python's too."""
    with VirtualGpu():
        return _engine_run_backward(*args, **kwargs)


def _one_by_one(operations: list[torch.distributed.P2POp]) -> list[torch.distributed.Work]:
    """Start messages without asking what backend there is for a GPU."""
    started = []
    for one in operations:
        peer = "group_dst" if one.op is torch.distributed.isend else "group_src"
        started.append(one.op(one.tensor, group=one.group, **{peer: one.group_peer}))
    return started


class _Readback:
    """Values that the host would have read: ones, which are finite."""

    def __init__(self, values: Tensor) -> None:
        self._count = values.numel()

    def read(self) -> list[float]:
        return [1.0] * self._count


def prepare() -> None:
    """Import what a dry run needs, with DeepSpeed told of a GPU; once, for all processes that are forked from here."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    os.environ["TORCHDYNAMO_DISABLE"] = "1"
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore")
    import deepspeed
    import deepspeed.ops
    from deepspeed.accelerator import set_accelerator
    from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator

    class Accelerator(CPU_Accelerator):
        """DeepSpeed's CPU under the name of a GPU: streams and events are none, and memory is not asked for."""

        def __init__(self) -> None:
            super().__init__()
            self._name, self._communication_backend_name = "cuda", "nccl"

        def device_name(self, device_index: int | None = None) -> str:
            return "cuda" if device_index is None else f"cuda:{device_index}"

        def current_device(self) -> int:
            return 0

        def current_device_name(self) -> str:
            return "cuda:0"

        def get_rss(self) -> int:
            return 0

        def on_accelerator(self, tensor: Tensor) -> bool:
            return tensor.is_meta

    set_accelerator(Accelerator())
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # compiled, for inference on CPUs
    import deconattn.train.engine  # noqa: F401
