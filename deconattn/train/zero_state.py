"""Whole tensors in and out of DeepSpeed's partitions: fp32 master weights and AdamW moments, by parameter.

This is what makes a checkpoint independent of ZeRO stage and data-parallel size. It leans on internals of the
pinned DeepSpeed: under ZeRO the optimiser's state lives in flat partitions and is linked to the parameters
during the first step, where ZeRO-1 and 2 forget all parameter groups but the first. So the state is created and
linked here, before any step.
"""

from collections.abc import Iterator

import torch
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
)
from torch import Tensor, nn

MOMENTS = ("exp_avg", "exp_avg_sq")


class ZeroState:
    """The training state of one engine's parameters.

    Args:
        module: the model inside the engine.
        base: the torch optimiser that was handed to DeepSpeed.
        wrapped: the optimiser that DeepSpeed made of it.
        stage: ZeRO stage.
    """

    def __init__(self, module: nn.Module, base: torch.optim.Optimizer, wrapped: object, stage: int) -> None:
        self._parameters = dict(module.named_parameters())
        self._base, self._wrapped, self._stage = base, wrapped, stage
        self._create_moments()

    @property
    def optimizer_steps(self) -> int:
        """Steps that AdamW has taken (skipped ones are not counted)."""
        return int(next(iter(self._base.state.values()))["step"])

    @optimizer_steps.setter
    def optimizer_steps(self, steps: int) -> None:
        for state in self._base.state.values():
            state["step"].fill_(steps)

    def tensors(self, kind: str) -> Iterator[tuple[str, Tensor]]:
        """(name, fp32 tensor on the CPU) of every parameter; kind is `weights` or a moment.

        A collective call under ZeRO: every rank must run through it, and every rank gets the whole tensors.
        """
        for name, parameter in self._parameters.items():
            yield name, self._get(parameter, kind).to("cpu", torch.float32)

    def load(self, kind: str, name: str, value: Tensor) -> None:
        """Put a whole tensor back; the inverse of :meth:`tensors`, parameter by parameter, on every rank."""
        parameter = self._parameters[name]
        value = value.to(parameter.device)
        if self._stage == 0:
            target = parameter.data if kind == "weights" else self._base.state[parameter][kind]
            target.copy_(value)
        elif kind == "weights":
            safe_set_full_fp32_param(parameter, value)
        else:
            safe_set_full_optimizer_state(parameter, value, kind)

    def _create_moments(self) -> None:
        for partition in self._partitions():
            step = torch.zeros((), dtype=torch.float32, device=partition.device)
            self._base.state[partition] = {"step": step, **{name: torch.zeros_like(partition) for name in MOMENTS}}
        link = getattr(self._wrapped, "_lazy_init_hp_params_optimizer_state", None)
        if link is not None:
            link()

    def _get(self, parameter: nn.Parameter, kind: str) -> Tensor:
        if self._stage == 0:
            return parameter.data if kind == "weights" else self._base.state[parameter][kind]
        if kind == "weights":
            return safe_get_full_fp32_param(parameter)
        return safe_get_full_optimizer_state(parameter, kind)

    def _partitions(self) -> list[Tensor]:
        """The tensors that AdamW steps: parameters, or ZeRO's flat partitions of them."""
        if self._stage == 3:
            return list(self._wrapped.fp32_partitioned_groups_flat)  # type: ignore[attr-defined]
        return [parameter for group in self._base.param_groups for parameter in group["params"]]
