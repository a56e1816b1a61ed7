"""DeepSpeed's optimisers, made to ask the device for nothing in a step and a micro-batch.

They copy the gradient's norm to the host to see whether it is finite, in ZeRO-1 as a number, in ZeRO-2 and 3 each time
that one is marked as invalid, and in ZeRO-3 the host waits for every reduction of a micro-batch and, on one rank, for
every gathering. Here the norms are the same to the last bit but stay on the device, where :mod:`deconattn.train.update`
clips and leaves weights alone, and streams wait for one another. Where the optimiser's state lies on the host, all is
as DeepSpeed has it, as the host must wait for gradients then.

What is left bounds ZeRO-3's memory on several ranks: a host that is more than two gatherings, or two reductions, ahead
of the device waits for the oldest (partitioned_param_coordinator.py:404, stage3.py:1667), with the others still queued.

What is replaced was read in the DeepSpeed that we pin; tests/train/test_unwaited.py has digests of its source.
"""

from collections.abc import Callable
from typing import Any

import deepspeed
import torch
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.utils import combine_grad_norm_groups, is_model_parallel_parameter
from deepspeed.runtime.zero.partition_parameters import (
    Init,
    NoGatherCoalescedHandle,
    NoGatherHandle,
    PartitionedParamStatus,
    ZeroParamStatus,
)
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from deepspeed.runtime.zero.utils import get_norm_dtype
from torch import Tensor

FINE = 0.0
"""Norm that DeepSpeed is told of: on the host, and finite."""


def without_waits(wrapped: Any) -> Callable[[], Tensor]:
    """Replace what has the host wait in an optimiser that DeepSpeed made.

    Returns:
        The norm of a step's gradient, a scalar, infinite where it is not finite; there once the step updates weights.
    """
    if isinstance(wrapped, BF16_Optimizer):
        return _Bf16(wrapped).norm
    if isinstance(wrapped, DeepSpeedZeroOptimizer) and not wrapped.cpu_offload:
        return _Zero12(wrapped).norm
    if isinstance(wrapped, DeepSpeedZeroOptimizer_Stage3) and not wrapped.offload_optimizer:
        return _Zero3(wrapped).norm
    return lambda: wrapped._global_grad_norm


class _Unwaited:
    """Optimiser with methods replaced, and the norm of its last step."""

    def __init__(self, wrapped: Any) -> None:
        self._wrapped = wrapped
        self._norm: Tensor | None = None

    def norm(self) -> Tensor:
        assert self._norm is not None, "an update outside a step"
        return self._norm


class _Bf16(_Unwaited):
    """bf16 with ZeRO-1: `step` without the norm's way over the host, gradients added without an fp32 copy of each."""

    def __init__(self, wrapped: Any) -> None:
        super().__init__(wrapped)
        wrapped.step = self._step
        wrapped._update_hp_grad = self._add_gradient

    @torch.no_grad()
    def _add_gradient(self, parameter: Any, group: int, index: int, clear_lp_grads: bool = False) -> None:
        """Add to the fp32 sum in one pass, 10 bytes an element where a cast before it makes it 18."""
        if parameter.grad is None:
            return
        total = self._wrapped.fp32_groups_gradients[group][index]
        total.add_(parameter.grad.view(total.shape))
        parameter._hp_grad = total
        self._wrapped.fp32_groups_has_gradients[group][index] = True
        if clear_lp_grads:
            parameter.grad.zero_()

    @torch.no_grad()
    def _step(self, closure: None = None) -> None:
        wrapped = self._wrapped
        gradients, _ = wrapped.get_grads_for_norm()
        squares = torch.stack(torch._foreach_norm(gradients, 2.0)).pow(2.0).sum()
        if wrapped.mpu is not None:
            deepspeed.comm.all_reduce(squares, group=wrapped.mpu.get_model_parallel_group())
        norm = squares.pow(0.5)
        self._norm = torch.where(norm.isfinite(), norm, torch.inf)
        for weights, gradient in zip(
            wrapped.fp32_groups_flat_partition, wrapped.fp32_groups_gradient_flat_partition, strict=True
        ):
            weights.grad = gradient
        wrapped.optimizer.step()
        wrapped._lazy_init_hp_params_optimizer_state()
        wrapped.update_lp_params()
        wrapped.clear_hp_grads()


class _Zero12(_Unwaited):
    """ZeRO-2, and ZeRO-1 in fp32: no second look for what is not finite, and norms without a mark for it."""

    def __init__(self, wrapped: Any) -> None:
        super().__init__(wrapped)
        self._scaled_global_norm = wrapped.scaled_global_norm
        wrapped.check_grad_overflow = False
        wrapped.get_grad_norm_direct = self._group_norm
        wrapped.scaled_global_norm = self._global_norm

    def _global_norm(self, norm_type: int = 2) -> float:
        self._norm = self._scaled_global_norm(norm_type)
        return FINE

    def _group_norm(self, gradients: list[Tensor], parameters: list[Tensor], norm_type: int = 2) -> Tensor:
        gradients = [gradient for gradient in gradients if not getattr(gradient, "_zero_padding", False)]
        return _norm(
            self._wrapped,
            [
                gradient
                for gradient, parameter in zip(gradients, parameters, strict=False)
                if not getattr(parameter, "ds_pipe_replicated", False) and _counts(self._wrapped, parameter)
            ],
            self._wrapped.dp_process_group,
        )


class _Zero3(_Unwaited):
    """ZeRO-3: norms without a mark for what is not finite, streams that wait in the place of the host."""

    def __init__(self, wrapped: Any) -> None:
        super().__init__(wrapped)
        wrapped._get_norm_groups = self._norm_groups
        wrapped.unscale_and_clip_grads = _unchanged
        stream = wrapped.reduce_and_partition_stream
        if isinstance(stream, torch.cuda.Stream):
            wrapped.reduce_and_partition_stream = _WaitedForByStreams(
                stream_id=stream.stream_id, device_index=stream.device_index, device_type=stream.device_type
            )
        if wrapped.zero_hpz_partition_size > 1:
            _keep_second_copies_for(wrapped)
        for handle in (NoGatherHandle, NoGatherCoalescedHandle):
            handle.wait = _gathered
        if deepspeed.comm.get_world_size(group=wrapped.dp_process_group) == 1:  # gathering takes no memory
            wrapped._get_param_coordinator()._PartitionedParameterCoordinator__max_ongoing_fetch_events = 10**9

    def _norm_groups(self) -> list[float]:
        wrapped = self._wrapped
        norms = []
        for index, parameters in enumerate(wrapped.fp16_groups):
            group = wrapped._get_param_partition_group(parameters[0])
            apart = wrapped._grad_norm_counts_every_rank(parameters, group)
            pairs = zip(wrapped.averaged_gradients[index], parameters, strict=False)
            norms.append(_norm(wrapped, [g for g, p in pairs if apart or _counts(wrapped, p)], group, apart))
        self._norm = combine_grad_norm_groups(norms)
        return [FINE]


class _WaitedForByStreams(torch.cuda.Stream):
    """Stream whose results the current stream waits for, where the host would."""

    def synchronize(self) -> None:
        torch.cuda.current_stream().wait_stream(self)


def _keep_second_copies_for(wrapped: Any) -> None:
    """Have hpZ's second copies made without the host's wait for each: the stream that gathers them waits instead."""
    stream = wrapped._get_param_coordinator()._PartitionedParameterCoordinator__allgather_stream

    def keep(partitioner: Any, parameter: Any, buffer: None = None, has_been_updated: bool = False) -> None:
        assert parameter.ds_status is not ZeroParamStatus.INFLIGHT, "partitioned while it is being gathered"
        if parameter.ds_status is not ZeroParamStatus.AVAILABLE:
            return
        kept: Any = parameter.ds_secondary_tensor
        if kept is not None and not has_been_updated:
            return
        size = partitioner._aligned_size(parameter) // partitioner.num_ranks_in_param_group
        if kept is None:
            kept = parameter.ds_secondary_tensor = torch.empty(
                size, dtype=parameter.dtype, device=partitioner.remote_device
            )
            kept.ds_numel, kept.status, kept.final_location = size, PartitionedParamStatus.AVAILABLE, None
        start = size * partitioner.rank_in_group
        there = max(0, min(parameter.ds_numel - start, size))
        with torch.no_grad():
            kept[there:].zero_()
            kept[:there].copy_(parameter.contiguous().view(-1).narrow(0, min(start, parameter.ds_numel), there))
        if isinstance(stream, torch.cuda.Stream):
            stream.wait_stream(torch.cuda.current_stream())

    Init._partition_param_sec = keep


def _gathered(handle: Any, **_: Any) -> None:
    """Note that weights which one rank has whole are there: what is queued after them comes after them."""
    private = f"_{type(handle).__name__}__"
    if getattr(handle, f"{private}complete"):
        return
    parameters = getattr(handle, f"{private}params", None) or [getattr(handle, f"{private}param")]
    for parameter in parameters:
        parameter.ds_status = ZeroParamStatus.AVAILABLE
    setattr(handle, f"{private}complete", True)


def _unchanged(*_: Any) -> None:
    """Leave gradients as they are: nothing is scaled, and the update clips."""


def _counts(wrapped: Any, parameter: Tensor) -> bool:
    """Whether this rank's part of a gradient is not another tensor-parallel rank's, too."""
    return is_model_parallel_parameter(parameter) or wrapped.model_parallel_rank == 0


def _norm(wrapped: Any, gradients: list[Tensor], group: Any, apart: bool = False) -> Tensor:
    """Return the norm of one group's gradient over all ranks; a collective call.

    Args:
        gradients: of this rank's partition, counted nowhere else.
        group: ranks that it is partitioned over; `apart`: tensor-parallel ones among them.
    """
    if gradients:
        norms = [torch.linalg.vector_norm(gradient, dtype=get_norm_dtype()) for gradient in gradients]
        squares = torch.stack(norms).pow(2.0).sum()
    else:
        squares = torch.zeros((), device=wrapped.device, dtype=get_norm_dtype())
    if isinstance(wrapped, DeepSpeedZeroOptimizer):
        squares = squares.float()
    deepspeed.comm.all_reduce(squares, group=group)
    if not apart:
        wrapped._model_parallel_all_reduce(tensor=squares, op=deepspeed.comm.ReduceOp.SUM)
    return squares.pow(0.5)
