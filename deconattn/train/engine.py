"""The one door to DeepSpeed: a model and flags in, optimiser steps out."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import deepspeed
import torch
from torch import Tensor, nn

from deconattn.config import TrainingFlags
from deconattn.data import Batch
from deconattn.model.causal_lm import CausalLM, LossSum
from deconattn.train.deepspeed_config import deepspeed_config
from deconattn.train.zero_state import ZeroState


@dataclass(frozen=True)
class StepResult:
    """One optimiser step.

    Attributes:
        loss: mean cross-entropy over all ranks' labels, nats.
        grad_norm: of the averaged gradient before clipping; not finite if the step was skipped.
        skipped: the loss or the gradient was not finite, so the weights did not change.
        interrupted: some rank asked to stop.
    """

    loss: float
    grad_norm: float
    skipped: bool
    interrupted: bool


class Engine:
    """A data-parallel training engine.

    The gradient is that of the loss summed over labels and divided by the number of positions, a constant, so
    that it does not depend on how labels fall into micro-batches; without document masks it is the mean loss.
    """

    def __init__(self, model: CausalLM, flags: TrainingFlags) -> None:
        self.flags = flags
        self.data_parallel_size = deepspeed.comm.get_world_size()
        self.rank = deepspeed.comm.get_rank()
        self.accumulation_steps = flags.accumulation_steps(self.data_parallel_size)
        config = deepspeed_config(flags, self.accumulation_steps)
        self.stage: int = config.get("zero_optimization", {}).get("stage", 0)

        model.model.activation_checkpointing = flags.engine.activation_checkpointing
        if flags.engine.compile:
            for layer in model.model.layers:
                layer.compile()
        optimization = flags.optimization
        optimizer = torch.optim.AdamW(
            _parameter_groups(model, optimization.weight_decay),
            lr=optimization.lr,
            betas=(optimization.adam_beta1, optimization.adam_beta2),
            eps=optimization.adam_eps,
            fused=True,
        )
        self._engine, wrapped, _, _ = deepspeed.initialize(
            model=model, optimizer=optimizer, config=config, dist_init_required=False
        )
        self.device: torch.device = self._engine.device
        self.model = model
        self._optimizer = optimizer
        self.state = ZeroState(model, optimizer, wrapped, self.stage)

    def train_step(self, micro_batches: Sequence[Batch], learning_rate: float, stop: bool = False) -> StepResult:
        """One optimiser step over this rank's micro-batches; a collective call.

        Args:
            micro_batches: as many as `accumulation_steps`.
            stop: this rank was asked to stop; every rank learns of it in the result.
        """
        self._engine.train()
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        sums = torch.zeros(3, dtype=torch.float64, device=self.device)  # loss, labels, ranks that want to stop
        sums[2] = float(stop)
        grad_norm = math.nan
        for index, batch in enumerate(micro_batches):
            loss = self._forward(batch)
            sums[0] += loss.total.detach()
            sums[1] += loss.labels
            mean = loss.total / batch.input_ids.numel()
            # A loss that is not finite must not pass unnoticed behind finite gradients, nor on other ranks.
            finite = torch.where(mean.detach().isfinite(), 1.0, math.nan)
            self._engine.backward(mean * finite)
            if index == len(micro_batches) - 1 and self.stage == 0:
                grad_norm = self._clip()
            self._engine.step()
        if self.stage:
            grad_norm = float(self._engine.get_global_grad_norm())
        deepspeed.comm.all_reduce(sums)
        total, labels, stops = sums.tolist()
        return StepResult(
            loss=total / max(1.0, labels),
            grad_norm=grad_norm,
            skipped=not math.isfinite(grad_norm),
            interrupted=stops > 0,
        )

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Batch]) -> float:
        """Mean cross-entropy, nats, over the labels of all ranks' batches; a collective call.

        Under ZeRO-3 every rank must bring the same number of batches.
        """
        self._engine.eval()
        sums = torch.zeros(2, dtype=torch.float64, device=self.device)
        for batch in batches:
            loss = self._forward(batch)
            sums[0] += loss.total
            sums[1] += loss.labels
        deepspeed.comm.all_reduce(sums)
        total, labels = sums.tolist()
        return total / max(1.0, labels)

    def barrier(self) -> None:
        deepspeed.comm.barrier()

    def _forward(self, batch: Batch) -> LossSum:
        batch = batch.to(self.device)
        return self._engine(batch.input_ids, batch.labels, batch.position_ids, batch.document_ids)

    def _clip(self) -> float:
        """Without ZeRO: clip; drop a gradient that is not finite, on which AdamW then does nothing."""
        limit = self.flags.optimization.clip_grad or math.inf
        norm = float(nn.utils.clip_grad_norm_(self.model.parameters(), limit))
        if not math.isfinite(norm):
            for parameter in self.model.parameters():
                parameter.grad = None
        return norm


def _parameter_groups(model: CausalLM, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay, vectors (norms, biases) do not."""
    parameters = list(model.parameters())
    matrices: list[Tensor] = [parameter for parameter in parameters if parameter.ndim >= 2]
    vectors: list[Tensor] = [parameter for parameter in parameters if parameter.ndim < 2]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
