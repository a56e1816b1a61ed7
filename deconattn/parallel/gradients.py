"""Global gradient norm over all ranks' parts of the model."""

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from deconattn.layers.shards import shard_of
from deconattn.parallel.topology import Topology


def gradient_norm(parameters: Iterable[nn.Parameter], topology: Topology) -> Tensor:
    """Return the norm of the whole model's gradient, a scalar on the device; a collective call.

    A part that several ranks hold is counted once.
    """
    parameters = list(parameters)
    counted = [p.grad for p in parameters if p.grad is not None and _counts(p, topology)]
    norm = _norm(counted, parameters[0].device)
    if topology.replica_group is not None:
        square = norm.square()
        dist.all_reduce(square, group=topology.replica_group)
        norm = square.sqrt()
    return norm


def _norm(gradients: list[Tensor], device: torch.device) -> Tensor:
    return nn.utils.get_total_norm(gradients).to(device) if gradients else torch.zeros((), device=device)


def _counts(parameter: nn.Parameter, topology: Topology) -> bool:
    if getattr(parameter, "ds_pipe_replicated", False):
        return False
    shard = shard_of(parameter)
    return topology.tp_rank == 0 if shard is None else shard.is_first_copy
