"""Global gradient norm over all ranks' parts of the model, and clipping by it."""

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from deconattn.layers.shards import shard_of
from deconattn.parallel.topology import Topology


def clip_gradients(parameters: Iterable[nn.Parameter], limit: float, topology: Topology) -> float:
    """Scale the gradients of all ranks so that the norm of the whole does not exceed `limit`; a collective call.

    A part that several ranks hold is counted once. A norm that is not finite drops the gradients, so that an
    optimiser step does nothing.

    Returns:
        The norm before clipping.
    """
    parameters = list(parameters)
    counted = [p.grad for p in parameters if p.grad is not None and _counts(p, topology)]
    norm = _norm(counted, parameters[0].device)
    if topology.replica_group is not None:
        square = norm.square()
        dist.all_reduce(square, group=topology.replica_group)
        norm = square.sqrt()
    if not norm.isfinite():
        for parameter in parameters:
            parameter.grad = None
    elif limit:
        nn.utils.clip_grads_with_norm_(parameters, limit, norm)
    return float(norm)


def _norm(gradients: list[Tensor], device: torch.device) -> Tensor:
    return nn.utils.get_total_norm(gradients).to(device) if gradients else torch.zeros((), device=device)


def _counts(parameter: nn.Parameter, topology: Topology) -> bool:
    if getattr(parameter, "ds_pipe_replicated", False):
        return False
    shard = shard_of(parameter)
    return topology.tp_rank == 0 if shard is None else shard.is_first_copy
