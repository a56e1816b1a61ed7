"""Optimisers of a run: AdamW for all, or Muon for the matrices of the hidden layers and AdamW for the rest."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from deconattn.checkpoint.moments import ADAMW, MUON, is_muons
from deconattn.config.flag_groups import OptimizationFlags
from deconattn.layers.shards import shard_of
from deconattn.model.causal_lm import CausalLM
from deconattn.train.muon import MuonWithAdamW


def make_optimizer(
    model: CausalLM, flags: OptimizationFlags, frozen: Mapping[str, int] | None = None
) -> torch.optim.Optimizer:
    """Make the optimiser of this rank's part of a model, before DeepSpeed makes anything of it.

    Weight decay is that of matrices; norms and biases have none. Each parameter group has `moments`, the names of its
    parameters' state, and `until`, the step until which they are frozen.

    Args:
        frozen: that step by canonical name, of those that are.
    """
    matrices: dict[int, list[nn.Parameter]] = {}
    hidden: list[nn.Parameter] = []
    vectors: dict[int, list[nn.Parameter]] = {}
    for name, parameter in model.canonical_parameters().items():
        dimensions = len(whole_shape(parameter))
        if is_muons(name, dimensions, flags.optimizer):
            hidden.append(parameter)
        else:
            kind = matrices if dimensions >= 2 else vectors
            kind.setdefault((frozen or {}).get(name, 0), []).append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": parameters, "weight_decay": weight_decay, "moments": ADAMW, "until": until}
        for of_kind, weight_decay in ((matrices, flags.weight_decay), (vectors, 0.0))  # a middle stage has no tables
        for until, parameters in sorted(of_kind.items())
    ]
    adamw = torch.optim.AdamW(
        groups, lr=flags.lr, betas=(flags.adam_beta1, flags.adam_beta2), eps=flags.adam_eps, fused=True
    )
    if not hidden:
        return adamw
    group = {"params": hidden, "weight_decay": flags.weight_decay, "moments": MUON, "lr": flags.lr, "until": 0}
    return MuonWithAdamW(group, adamw)


def moments_of(optimizer: torch.optim.Optimizer) -> dict[nn.Parameter, tuple[str, ...]]:
    """Return the names of each parameter's state; before DeepSpeed puts its partitions in the parameters' place."""
    return {parameter: group["moments"] for group in optimizer.param_groups for parameter in group["params"]}


def whole_shape(parameter: nn.Parameter) -> tuple[int, ...]:
    """Return the shape of what tensor parallelism has cut and ZeRO-3 has emptied."""
    shard = shard_of(parameter)
    return tuple(getattr(parameter, "ds_shape", parameter.shape)) if shard is None else shard.shape
