"""Optimiser update without a wait for the device: clipping and skipping are decided there, and told to the host later.

A host that waits cannot queue the next work, and the device stands still. So the gradient is scaled by a factor on the
device, and AdamW's fused kernel leaves weights and moments alone where `found_inf` is set. The norm comes from
DeepSpeed's optimisers without a wait (:mod:`deconattn.train.unwaited`); the one of a step is for its outcome.
"""

from collections.abc import Callable
from typing import Any

import torch
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from torch import Tensor


class Readback:
    """Copy of a small tensor to the host, which waits for nothing that is queued after it."""

    def __init__(self, values: Tensor) -> None:
        self._arrived: torch.cuda.Event | None = None
        if values.device.type == "cuda":
            self._values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._values.copy_(values, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()
        else:
            self._values = values

    def read(self) -> list[float]:
        """Return the values, once they are there."""
        if self._arrived is not None and not self._arrived.query():
            self._arrived.synchronize()
        return self._values.tolist()


class Update:
    """Part of a step between the gradients and AdamW: hooked before each update of a parameter group.

    Args:
        base: the torch optimiser that was handed to DeepSpeed, fused AdamW.
        wrapped: the optimiser that DeepSpeed made of it.
        stage: ZeRO stage.
        limit: norm to clip to; 0 leaves gradients as they are.
        norm: returns the gradient's norm, a scalar, which it computes in ZeRO-0: a collective call.
    """

    def __init__(
        self, base: torch.optim.Optimizer, wrapped: Any, stage: int, limit: float, norm: Callable[[], Tensor]
    ) -> None:
        self._limit, self._current_norm = limit, norm
        self._over_norm = stage == 0 or isinstance(wrapped, BF16_Optimizer)
        self._sums: Callable[[], Tensor] | None = None
        self._norm: Tensor | None = None
        self._outcome: Readback | None = None
        base.register_step_pre_hook(self._prepare)

    def begin(self, sums: Callable[[], Tensor]) -> None:
        """Begin a step.

        Args:
            sums: returns what the host will want to know of the step beside the norm, [n]; a collective call, made
                once the gradients are there.
        """
        self._sums, self._norm, self._outcome = sums, None, None

    def outcome(self) -> list[float]:
        """Return the step's sums, and last the norm before clipping, not finite where the update was skipped."""
        if self._outcome is None:  # DeepSpeed has found the gradient not finite, and made no update
            self._send(torch.tensor(torch.inf))
        assert self._outcome is not None
        return self._outcome.read()

    def _send(self, norm: Tensor) -> None:
        assert self._sums is not None, "an update outside a step"
        sums = self._sums()
        self._outcome = Readback(torch.cat([sums, norm.to(sums)[None]]))

    def _prepare(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if self._norm is None:  # ZeRO updates group by group
            self._norm = self._current_norm()
            self._send(self._norm)
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if not gradients:
            return
        norm = self._norm.to(gradients[0].device)  # another one where ZeRO offloads
        optimizer.found_inf = norm.isfinite().logical_not().float()  # type: ignore[attr-defined]
        if self._limit:
            torch._foreach_mul_(gradients, self._factor(norm))

    def _factor(self, norm: Tensor) -> Tensor:
        """Return the scale that clips; by either formula as DeepSpeed's optimiser would, to the last bit."""
        if self._over_norm:
            return (self._limit / (norm + 1e-6)).clamp(max=1.0)
        return 1.0 / ((norm + 1e-6) / self._limit).clamp(min=1.0)
