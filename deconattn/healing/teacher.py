"""The model that a run learns from: this rank's part of it, without gradients, and what it shows of its layers."""

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from deconattn.checkpoint.slice_file import part_of_shard
from deconattn.healing.source import Source
from deconattn.layers.config import ModelConfig
from deconattn.layers.shards import buffer_shards, shard_of
from deconattn.model.block import Block
from deconattn.model.streams import Streams
from deconattn.ops.distillation import Taught
from deconattn.parallel.agreement import everywhere
from deconattn.parallel.build import build_model
from deconattn.parallel.topology import Topology

Documents = tuple[Tensor | None, Tensor | None, Tensor | None]
"""Position ids, document ids and offsets of a batch, as a decoder takes them."""


class Shown(NamedTuple):
    """What a layer of the teacher had and made of it.

    Attributes:
        hidden: [B, L, d] (this rank's part of L under sequence parallelism), its input.
        mixed: the same of its mixer's output.
    """

    hidden: Tensor
    mixed: Tensor


class Teacher:
    """A trained model that computes and is not trained; made on every rank.

    Tensor parallelism cuts it as the run's own model. Data-parallel ranks hold it whole, whatever the ZeRO stage.

    Args:
        source: its weights, of this configuration.
        longest: tokens of the longest sequence that it is to see.
        dtype: of its weights.

    Raises:
        UserError: on every rank: a tensor is damaged or cannot be read.
    """

    def __init__(
        self,
        source: Source,
        topology: Topology,
        sequence_parallel: bool,
        longest: int,
        device: torch.device | str,
        dtype: torch.dtype,
    ) -> None:
        self._topology, self.sequence_parallel = topology, sequence_parallel
        self._model = build_model(as_teacher(source.config, longest), topology, sequence_parallel, device, dtype)
        self._model.requires_grad_(False).eval()
        everywhere(lambda: self._load(source))
        source.close()
        self._mixed: list[Tensor] | None = None
        for block in self._model.model.blocks:
            block.self_attn.register_forward_hook(self._keep)

    @property
    def topology(self) -> Topology:
        return self._topology

    @torch.no_grad()
    def layers(self, input_ids: Tensor, documents: Documents) -> list[Shown]:
        """Return what each layer makes of int64 [B, L]."""
        decoder, rows, inputs = self._model.model, len(input_ids), list[Tensor]()
        self._mixed = []
        try:
            positions, ids, offsets = documents

            def observe(_: Block, hidden: Tensor, *__: Any) -> None:
                inputs.append(hidden[:rows])

            embedded = decoder.embed_tokens(input_ids)
            decoder.forward_embedded(embedded, input_ids.shape[1], positions, ids, observe, offsets)
            return [Shown(hidden, mixed[:rows]) for hidden, mixed in zip(inputs, self._mixed, strict=True)]
        finally:
            self._mixed = None

    @torch.no_grad()
    def predictions(self, input_ids: Tensor, documents: Documents, temperature: float) -> Taught:
        """Return what its head predicts from, of int64 [B, L]."""
        return Taught(self._model.model(input_ids, *documents), self._model.lm_head.weight, temperature)

    def _keep(self, module: nn.Module, arguments: Any, mixed: Tensor) -> None:
        if self._mixed is not None:
            self._mixed.append(mixed)

    @torch.no_grad()
    def _load(self, source: Source) -> None:
        parts = {name: shard_of(parameter) for name, parameter in self._model.canonical_parameters().items()}
        tensors: dict[str, Tensor] = {**self._model.canonical_parameters(), **dict(self._model.named_buffers())}
        for name, tensor in tensors.items():
            part = part_of_shard((parts | buffer_shards(self._model)).get(name))
            tensor.copy_(source.read(name, part, 0, tensor.numel()).view(tensor.shape))


def as_teacher(config: ModelConfig, longest: int) -> ModelConfig:
    """Return a configuration that takes sequences of this length, where no fixed stream sets a limit."""
    limited = bool(Streams.of(config.layer_variants).fixed)
    return config if limited else replace(config, max_position_embeddings=longest)
