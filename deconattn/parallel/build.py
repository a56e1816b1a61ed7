"""Construction of a rank's part of the model, from a configuration and its place in the topology."""

import torch

from deconattn.layers.config import ModelConfig
from deconattn.model.causal_lm import CausalLM
from deconattn.parallel.stages import stage_spans
from deconattn.parallel.tensor import TensorParallel
from deconattn.parallel.topology import Topology


def build_model(config: ModelConfig, topology: Topology, sequence_parallel: bool = False) -> CausalLM:
    """Build this rank's layers and its part of each, on the CPU, not initialised; a collective call.

    :func:`deconattn.model.init.initialize` or a checkpoint fills them.
    """
    span = None
    if topology.pp_size > 1:
        span = stage_spans(config, topology.pp_size, config.max_position_embeddings)[topology.pp_rank]
    with torch.device("meta"):
        model = CausalLM(config, span)
        parallel = TensorParallel(model, topology, sequence_parallel) if topology.tp_group is not None else None
        if parallel:
            parallel.cut()
    model.to_empty(device="cpu")
    model.tie_weights()
    if parallel:
        parallel.finish()
    return model
