"""Construction of a rank's part of the model, from a configuration and its place in the topology."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from deconattn.layers.config import ModelConfig
from deconattn.model.causal_lm import CausalLM
from deconattn.parallel.context import share_sequences
from deconattn.parallel.stages import stage_spans
from deconattn.parallel.tensor import TensorParallel
from deconattn.parallel.topology import Topology


def build_model(
    config: ModelConfig,
    topology: Topology,
    sequence_parallel: bool = False,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    partition: Callable[[nn.Parameter], None] | None = None,
) -> CausalLM:
    """Build this rank's layers and its part of each, not initialised; a collective call.

    Nothing but that part ever has memory. :func:`deconattn.model.init.initialize` or a checkpoint fills it.

    Args:
        device: of parameters and buffers.
        dtype: of parameters; buffers have their own.
        partition: called with each parameter as it gets its memory, before the next one does
            (:class:`deconattn.parallel.partitions.Partitions`).
    """
    span = None
    if topology.pp_size > 1:
        span = stage_spans(config, topology.pp_size, config.max_position_embeddings)[topology.pp_rank]
    with torch.device("meta"):
        model = CausalLM(config, span)
        parallel = TensorParallel(model, topology, sequence_parallel) if topology.tp_group is not None else None
        if parallel:
            parallel.cut()
    _materialize(model, torch.device(device), dtype, partition)
    if parallel:
        parallel.finish()
    share_sequences(model, topology)
    return model


def _materialize(
    model: nn.Module, device: torch.device, dtype: torch.dtype, partition: Callable[[nn.Parameter], None] | None
) -> None:
    """Give parameters and buffers memory, one after the other; what was one tensor (tied embeddings) stays one."""
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            if id(parameter) not in made:
                new = nn.Parameter(_empty(parameter, device, dtype), parameter.requires_grad)
                if partition is not None:
                    partition(new)
                made[id(parameter)] = new
            setattr(module, name, made[id(parameter)])
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, _empty(buffer, device, buffer.dtype))


def _empty(like: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return row-major memory of a tensor's shape: its part of a checkpoint is a range of bytes."""
    return torch.empty(like.shape, dtype=dtype if like.is_floating_point() else like.dtype, device=device)
