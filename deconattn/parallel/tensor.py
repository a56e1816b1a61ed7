"""Tensor parallelism applied to a model: cuts what modules declare, and adds collectives around them."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.distributed import ProcessGroup

from deconattn.layers.config import ModelConfig
from deconattn.layers.shards import Shard, mark, mark_buffer, shard_of
from deconattn.layers.splits import Split
from deconattn.mixers import Mixer
from deconattn.model.causal_lm import CausalLM
from deconattn.model.recompute import Recomputed
from deconattn.parallel.collectives import all_reduce, leave
from deconattn.parallel.entrance import enter_layers
from deconattn.parallel.topology import Topology
from deconattn.parallel.vocabulary import VocabularyEmbedding, VocabularyHead


class TensorParallel:
    """Tensor parallelism of one model: cuts it on the meta device, and marks its parameters once they have memory."""

    def __init__(self, model: CausalLM, topology: Topology, sequence_parallel: bool) -> None:
        assert topology.tp_group is not None
        self._model, self._topology, self._sequence_parallel = model, topology, sequence_parallel
        self._group = topology.tp_group
        self._shards: list[tuple[nn.Module, str, Shard]] = []
        key_value_heads = model.config.num_key_value_heads
        copies = max(1, topology.tp_size // key_value_heads)
        self._copies_group: ProcessGroup | None = topology.tp_neighbours(copies) if copies > 1 else None
        self._cut_modules = [module for module in model.modules() if getattr(module, "splits", None) is not None]

    def cut(self) -> None:
        """Replace whole layers by this rank's parts and put the collectives around them."""
        model, config = self._model, self._model.config
        for module in self._cut_modules:
            self._shards += cut_tensors(module, config, self._topology.tp_rank, self._topology.tp_size)
            module.register_forward_pre_hook(self._enter)
            module.register_forward_hook(self._leave)
        vocabulary = Shard.of(
            (config.vocab_size, config.hidden_size),
            dim=0,
            pieces=config.vocab_size,
            rank=self._topology.tp_rank,
            ranks=self._topology.tp_size,
        )
        if model.model.is_first:
            embedding = VocabularyEmbedding(vocabulary, self._group, self._sequence_parallel)
            model.model.embed_tokens = embedding
            self._shards.append((embedding, "weight", vocabulary))
        if model.model.is_last:
            model.lm_head = VocabularyHead(vocabulary, self._group, self._sequence_parallel)
            self._shards.append((model.lm_head, "weight", vocabulary))
        model.tie_weights()
        if self._sequence_parallel:
            model.model.local_sequence = self._local_sequence

    def finish(self) -> None:
        """Mark the parts, and all-reduce the gradients of what several ranks hold and each uses in part."""
        for owner, name, shard in self._shards:
            if isinstance(tensor := getattr(owner, name), nn.Parameter):
                mark(tensor, shard)
            else:
                mark_buffer(owner, name, shard)
        inside = {id(parameter) for module in self._cut_modules for parameter in module.parameters()}
        for parameter in self._model.parameters():
            part = shard_of(parameter)
            if part is None and (self._sequence_parallel or id(parameter) in inside):
                _sum_gradients(parameter, self._group)
            elif part is not None and part.copies > 1:
                assert self._copies_group is not None
                _sum_gradients(parameter, self._copies_group)

    def _enter(self, module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        recomputed = isinstance(module, Recomputed) or self._model.model.activation_checkpointing
        return tuple(
            enter_layers(argument, self._group, self._sequence_parallel, recomputed)
            if isinstance(argument, Tensor)
            else argument
            for argument in arguments
        )

    def _leave(self, module: nn.Module, arguments: tuple[Any, ...], partial: Tensor) -> Tensor:
        return leave(partial, self._group, self._sequence_parallel)

    def _local_sequence(self, whole: Tensor) -> Tensor:
        """Return this rank's part of a sequence: [R, L, d] -> [R, L / tp_size, d]."""
        return whole.chunk(self._topology.tp_size, dim=1)[self._topology.tp_rank]


def cut_tensors(module: nn.Module, config: ModelConfig, rank: int, ranks: int) -> list[tuple[nn.Module, str, Shard]]:
    """Cut a module that declares `splits` to one rank's linear layers, parameters and buffers, not initialised.

    Returns:
        (owner, name, shard) of every tensor that was cut.
    """
    shards: list[tuple[nn.Module, str, Shard]] = []
    splits: Mapping[str, Split] = module.splits  # type: ignore[assignment]

    def cut(owner: nn.Module, name: str, split: Split) -> None:
        tensor: Tensor = getattr(owner, name)
        pieces = split.count(config, tensor.shape[split.dim])
        shard = Shard.of(tuple(tensor.shape), split.dim, pieces, rank, ranks)
        part = tensor.new_empty(shard.local_shape)
        setattr(owner, name, nn.Parameter(part) if isinstance(tensor, nn.Parameter) else part)
        shards.append((owner, name, shard))

    for name, split in splits.items():
        path, _, own_name = name.rpartition(".")
        owner = module.get_submodule(path)
        declared = getattr(owner, own_name)
        if isinstance(declared, Tensor):
            cut(owner, own_name, split)
            continue
        if split.dim == 1 and declared.bias is not None:
            raise ValueError(f"{name} is cut by rows and has a bias, which every rank would add: build it without")
        for parameter, _ in list(declared.named_parameters(recurse=False)):
            cut(declared, parameter, split)
        declared.out_features, declared.in_features = declared.weight.shape
    if isinstance(module, Mixer):
        module.became_part(rank, ranks)
    return shards


def _sum_gradients(parameter: nn.Parameter, group: ProcessGroup) -> None:
    parameter.register_hook(lambda gradient: all_reduce(group, gradient))
