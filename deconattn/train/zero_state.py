"""Gathering and scattering of ZeRO's state: fp32 master weights and the optimiser's moments, by canonical name.

This is what makes a checkpoint independent of the topology: DeepSpeed gathers its partitions over data-parallel
ranks, and we what tensor parallelism has cut. It leans on internals of the
pinned DeepSpeed: under ZeRO the optimiser's state lives in flat partitions and is linked to the parameters
during the first step, where ZeRO-1 and 2 forget all parameter groups but the first. So the state is created and
linked here, before any step.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)
from torch import Tensor, nn
from torch.nn.functional import pad

from deconattn.layers.shards import Shard, shard_of
from deconattn.model.causal_lm import CausalLM
from deconattn.parallel.topology import Topology


class ZeroState:
    """Optimiser state and master weights of one engine's parameters.

    Args:
        model: this rank's part of the model, inside the engine.
        base: the torch optimiser that was handed to DeepSpeed.
        wrapped: the optimiser that DeepSpeed made of it.
        stage: ZeRO stage.
        moments: names of each parameter's state (:func:`deconattn.train.optimizers.moments_of`).
    """

    def __init__(
        self,
        model: CausalLM,
        base: torch.optim.Optimizer,
        wrapped: object,
        stage: int,
        topology: Topology,
        moments: Mapping[nn.Parameter, tuple[str, ...]],
    ) -> None:
        self._parameters = model.canonical_parameters()
        self._tensor_group = topology.tp_group
        self._base, self._wrapped, self._stage = base, wrapped, stage
        self._steps = 0
        self._moments = moments
        self._create_moments()

    @property
    def optimizer_steps(self) -> int:
        """Steps that the optimiser has taken (skipped ones are not counted), without asking the device."""
        return self._steps

    @optimizer_steps.setter
    def optimizer_steps(self, steps: int) -> None:
        self._steps = steps
        for state in self._base.state.values():
            if "step" in state:  # Muon counts none
                state["step"].fill_(steps)

    def count_step(self) -> None:
        """Note that the optimiser has taken a step; its own count, on the device, has grown by itself."""
        self._steps += 1

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of tensors that there are: `weights`, and moments by the optimiser's names."""
        return ("weights", *dict.fromkeys(name for names in self._moments.values() for name in names))

    def tensors(self, kind: str) -> Iterator[tuple[str, Tensor]]:
        """Yield (name, whole fp32 tensor on the CPU) of each parameter of this stage; kind is `weights` or a moment.

        A collective call: every rank must run through it, and every rank of a stage gets the whole tensors. What
        another stage holds too (a tied embedding) is left to the first.
        """
        for name, parameter in self._parameters.items():
            if self._has(parameter, kind) and not getattr(parameter, "ds_pipe_replicated", False):
                yield name, self.whole(self._get(parameter, kind), shard_of(parameter)).to("cpu", torch.float32)

    def load(self, kind: str, name: str, value: Tensor) -> None:
        """Load a whole tensor; the inverse of :meth:`tensors`, parameter by parameter, on every rank."""
        parameter = self._parameters[name]
        if not self._has(parameter, kind):
            raise KeyError(f"{name} has no {kind}")
        shard = shard_of(parameter)
        value = (shard.take(value).contiguous() if shard else value).to(parameter.device)
        if self._stage == 0:
            target = parameter.data if kind == "weights" else self._base.state[parameter][kind]
            target.copy_(value)
        elif self._stage == 3:
            partition = _partition(parameter, value)
            if kind == "weights":
                safe_set_local_fp32_param(parameter, partition)
            else:
                safe_set_local_optimizer_state(parameter, partition, kind)
        elif kind == "weights":
            safe_set_full_fp32_param(parameter, value)
        else:
            safe_set_full_optimizer_state(parameter, value, kind)

    def whole(self, part: Tensor, shard: Shard | None) -> Tensor:
        """All-gather the tensor of which this rank holds `part`; a collective call if `shard` is given."""
        if shard is None:
            return part
        # Parts may differ in size; the collective wants equal ones.
        room = max(stop - start for start, stop in shard.bounds)
        mine = part.new_zeros(*part.shape[: shard.dim], room, *part.shape[shard.dim + 1 :])
        mine.narrow(shard.dim, 0, part.shape[shard.dim]).copy_(part)
        parts = [torch.empty_like(mine) for _ in shard.bounds]
        dist.all_gather(parts, mine, group=self._tensor_group)
        sizes = (stop - start for start, stop in shard.bounds)
        return shard.join([padded.narrow(shard.dim, 0, size) for padded, size in zip(parts, sizes, strict=True)])

    def _create_moments(self) -> None:
        for partition, names in self._partitions():
            state = {name: torch.zeros_like(partition) for name in names}
            if "exp_avg" in state:
                state["step"] = torch.zeros((), dtype=torch.float32, device=partition.device)
            self._base.state[partition] = state
        link = getattr(self._wrapped, "_lazy_init_hp_params_optimizer_state", None)
        if link is not None:
            link()

    def _has(self, parameter: nn.Parameter, kind: str) -> bool:
        return kind == "weights" or kind in self._moments[parameter]

    def _get(self, parameter: nn.Parameter, kind: str) -> Tensor:
        if self._stage == 0:
            return parameter.data if kind == "weights" else self._base.state[parameter][kind]
        if kind == "weights":
            return safe_get_full_fp32_param(parameter)
        return safe_get_full_optimizer_state(parameter, kind)

    def _partitions(self) -> Iterator[tuple[Tensor, tuple[str, ...]]]:
        """Yield what the optimiser steps, parameters or ZeRO's flat partitions, and the names of its moments."""
        groups = self._base.param_groups
        if self._stage == 3:
            wrapped: Any = self._wrapped
            for number, partition in enumerate(wrapped.fp32_partitioned_groups_flat):
                yield partition, groups[wrapped.sub_group_to_group_id[number]]["moments"]
        else:
            yield from ((partition, group["moments"]) for group in groups for partition in group["params"])


def _partition(parameter: nn.Parameter, value: Tensor) -> Tensor:
    """Return this rank's ZeRO-3 partition of a tensor, [partition], the last ones padded with zeros.

    DeepSpeed's own setter of a whole tensor reads beyond its end wherever the ranks do not divide it.
    """
    size, group = parameter.ds_tensor.numel(), parameter.ds_process_group  # type: ignore[attr-defined]
    whole = pad(value.flatten(), (0, size * dist.get_world_size(group) - value.numel()))
    return whole.narrow(0, size * dist.get_rank(group), size)
