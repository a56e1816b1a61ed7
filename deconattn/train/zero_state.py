"""What a rank holds of the training's state: fp32 master weights and the optimiser's moments, by canonical name.

This is what makes a checkpoint independent of the topology. DeepSpeed keeps flat partitions over the data-parallel
ranks, and tensor parallelism has cut what they are partitions of: a rank holds a run of the elements of its part of a
tensor. Nothing is gathered here. It leans on internals of the pinned DeepSpeed: under ZeRO the optimiser's state lives
in flat partitions and is linked to the parameters during the first step, where ZeRO-1 and 2 forget all parameter groups
but the first. So the state is created and linked here, before any step.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.utils import groups
from torch import Tensor, nn

from deconattn.layers.shards import Shard, partition_bounds, shard_of
from deconattn.model.causal_lm import CausalLM
from deconattn.parallel.topology import Topology


@dataclass(frozen=True)
class Held:
    """The run of a tensor's elements that this rank holds.

    Attributes:
        local: elements of this rank's tensor-parallel part, of which the run is some.
        shard: that part; None where it is the whole.
        first: the run's first element in it.
        values: live views by kind (`weights`, `exp_avg`, ..), 1-D, fp32.
        copies: ranks of this stage that hold the same run.
        copy: which of them this is.
        is_tied_copy: an earlier pipeline stage holds the same tensor.
    """

    name: str
    shape: tuple[int, ...]
    local: int
    shard: Shard | None
    first: int
    values: Mapping[str, Tensor]
    copies: int = 1
    copy: int = 0
    is_tied_copy: bool = False

    @property
    def last(self) -> int:
        return self.first + next(iter(self.values.values())).numel()


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
        self._topology = topology
        self._base, self._wrapped, self._stage = base, wrapped, stage
        self._steps = 0
        self.frozen_steps: dict[str, int] = {}
        """Of those steps, the ones in which parameters that are frozen until a step were so, by that step."""
        self._moments = moments
        self._create_moments()

    @property
    def optimizer_steps(self) -> int:
        """Steps that the optimiser has taken (skipped ones are not counted), without asking the device."""
        return self._steps

    def set_steps(self, steps: int, frozen: Mapping[str, int]) -> None:
        """Take up :attr:`optimizer_steps` and :attr:`frozen_steps` of a checkpoint."""
        self._steps, self.frozen_steps = steps, dict(frozen)
        for partition, group in self._partitions():
            if "step" in self._base.state[partition]:  # Muon counts none
                self._base.state[partition]["step"].fill_(steps - frozen.get(str(group["until"]), 0))

    def count_step(self, step: int, taken: bool) -> None:
        """Note that the optimiser has taken a step, or has skipped it.

        Its own count, on the device, has grown by itself. That of what is frozen begins when it no longer is, with
        moments of zero: AdamW's correction for those would else be long over, and the first updates far too large.

        Args:
            step: of the run, from 0.
        """
        self._steps += taken
        frozen = {group["until"] for group in self._base.param_groups if step < group["until"]}
        for until in frozen if taken else ():
            self.frozen_steps[str(until)] = self.frozen_steps.get(str(until), 0) + 1
        if frozen:
            for partition, group in self._partitions():
                if step < group["until"] and "step" in self._base.state[partition]:
                    self._base.state[partition]["step"].zero_()

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of tensors that there are: `weights`, and moments by the optimiser's names."""
        return ("weights", *dict.fromkeys(name for names in self._moments.values() for name in names))

    def held(self) -> Iterator[Held]:
        """Yield what this rank holds of each parameter of its stage; nothing of those that other ranks hold alone."""
        for name, parameter in self._parameters.items():
            first, values = self._views(parameter)
            if values:
                shard = shard_of(parameter)
                copies, copy = tensor_copies(shard, self._topology)
                if self._stage == 0:
                    replicas, replica = self._topology.zero_size, self._topology.zero_rank
                    copies, copy = copies * replicas, copy * replicas + replica
                whole = getattr(parameter, "ds_shape", parameter.shape) if shard is None else shard.shape
                local = parameter.ds_numel if hasattr(parameter, "ds_numel") else parameter.numel()
                tied = getattr(parameter, "ds_pipe_replicated", False)
                yield Held(name, tuple(whole), local, shard, first, values, copies, copy, tied)

    def spread(self, shared: Mapping[tuple[str, str], tuple[int, int]]) -> None:
        """Give the model the master weights that have been loaded; a collective call.


        Args:
            shared: of what data-parallel ranks hold alike, under ZeRO-0, the run that this rank has loaded, by name and
                kind: each its own of equal ones, which they now exchange.
        """
        if self._stage == 3:
            _refresh_zero_3(self._wrapped)
        elif self._stage:
            self._wrapped.update_lp_params()  # type: ignore[attr-defined]
        elif shared:
            group = groups._get_data_parallel_group()
            for held in self.held():
                for kind, values in held.values.items():
                    if (held.name, kind) in shared:
                        _exchange(values, *shared[held.name, kind], group)

    def _create_moments(self) -> None:
        for partition, group in self._partitions():
            state = {name: torch.zeros_like(partition) for name in group["moments"]}
            if "exp_avg" in state:
                state["step"] = torch.zeros((), dtype=torch.float32, device=partition.device)
            self._base.state[partition] = state
        link = getattr(self._wrapped, "_lazy_init_hp_params_optimizer_state", None)
        if link is not None:
            link()

    def _views(self, parameter: nn.Parameter) -> tuple[int, dict[str, Tensor]]:
        """Return the first element that is held of a parameter's part, and the live views by kind; none, and none."""
        names = self._moments[parameter]
        if self._stage == 0:
            moments = {name: self._base.state[parameter][name] for name in names}
            return 0, {kind: value.view(-1) for kind, value in {"weights": parameter.data, **moments}.items()}
        if self._stage == 3:
            return _zero_3_views(self._wrapped, parameter, names)
        mapping: Any = parameter._hp_mapping  # type: ignore[attr-defined]
        if mapping is None:
            return 0, {}
        moments = {name: mapping.get_hp_fragment(name) for name in names}
        return mapping.lp_fragment_address.start, {"weights": mapping.get_hp_fragment(), **moments}

    def _partitions(self) -> Iterator[tuple[Tensor, dict[str, Any]]]:
        """Yield what the optimiser steps, parameters or ZeRO's flat partitions, and its parameter group."""
        groups = self._base.param_groups
        if self._stage == 3:
            wrapped: Any = self._wrapped
            for number, partition in enumerate(wrapped.fp32_partitioned_groups_flat):
                yield partition, groups[wrapped.sub_group_to_group_id[number]]
        else:
            yield from ((partition, group) for group in groups for partition in group["params"])


def tensor_copies(shard: Shard | None, topology: Topology) -> tuple[int, int]:
    """Return how many tensor-parallel ranks hold a part, or the whole without one, and which of them this one is."""
    if shard is None:
        return topology.tp_size, topology.tp_rank
    return shard.copies, shard.rank - shard.bounds.index(shard.bounds[shard.rank])


def _zero_3_views(wrapped: Any, parameter: Any, moments: Sequence[str]) -> tuple[int, dict[str, Tensor]]:
    rank = dist.get_rank(parameter.ds_process_group)
    first, last = partition_bounds(parameter.ds_numel, parameter.ds_tensor.ds_numel, rank)
    if first == last:
        return 0, {}
    keys = {"weights": None, **{name: name for name in moments}}
    views = {kind: wrapped._get_fp32_opt_state_partition(parameter, True, key)[0] for kind, key in keys.items()}
    return first, {kind: view[: last - first] for kind, view in views.items()}


def _refresh_zero_3(wrapped: Any) -> None:
    """Give a ZeRO-3 model its weights from their masters, as DeepSpeed's step does it in the end."""
    wrapped._partition_all_parameters()
    for number in range(len(wrapped.fp16_groups)):
        wrapped._reassign_or_swap_out_partitioned_parameters(number)
    if wrapped.persistent_parameters:
        wrapped.persistent_parameters[0].all_gather(wrapped.persistent_parameters)
    wrapped.invalidate_secondary_tensor()


def _exchange(values: Tensor, first: int, last: int, group: dist.ProcessGroup) -> None:
    """All-gather a tensor of which each rank of a group has one of equal runs, [first, last); the last may be short."""
    ranks = dist.get_world_size(group)
    size = -(-values.numel() // ranks)
    mine = values.new_zeros(size)
    mine[: last - first] = values[first:last]
    parts = [torch.empty_like(mine) for _ in range(ranks)]
    dist.all_gather(parts, mine, group=group)
    values.copy_(torch.cat(parts)[: values.numel()])
