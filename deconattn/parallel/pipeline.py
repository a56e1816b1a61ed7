"""Pipeline stages under DeepSpeed: one module a stage, one float tensor sent between stages.

What DeepSpeed sends between stages must be float tensors that all get a gradient, and each costs a backward pass of
its own. So the fixed streams are rows of the hidden states, the static embeddings lie beside them along the feature
dimension, and document boundaries travel as integers. So do the labels: the last stage's `forward` must return the
loss, because in bf16 DeepSpeed clears gradients when the backward pass enters what `forward` returned, and would
lose that of a head applied in a loss function.

What is sent must have the same shape each time, which the documents' offsets have not: each stage has them of its own
rank's loader, which makes every stage's batches.
"""

from collections import deque
from collections.abc import Callable, Iterable
from contextlib import redirect_stdout
from io import StringIO

import torch
from deepspeed.runtime.pipe import PipelineModule
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from deconattn.data import Batch
from deconattn.model.causal_lm import CausalLM
from deconattn.parallel.topology import Topology

StageTensors = tuple[Tensor, ...]
"""Token ids int64 [B, L] before the first stage, else [R, L, d] or [R, L, 2d] (this rank's part of L under sequence
parallelism); then int64 [B, L] each: labels, and position ids and document ids where documents are masked."""


def microbatch(batch: Batch) -> tuple[StageTensors, Tensor]:
    """Return the first stage's input, and a label that DeepSpeed expects and nothing reads."""
    tensors = (batch.input_ids, batch.labels, batch.position_ids, batch.document_ids)
    given = tuple(tensor for tensor in tensors if tensor is not None)
    return given, torch.empty(0, device=batch.labels.device)


class Stage(nn.Module):
    """Module of one stage: from the tensors received to those sent on, or to the loss.

    Args:
        loss: normed hidden states [B, L, d] and labels [B, L] -> a scalar; called on the last stage.
        sequence_parallel_size: number of parts of the sequence between stages.
    """

    def __init__(self, model: CausalLM, loss: Callable[[Tensor, Tensor], Tensor], sequence_parallel_size: int) -> None:
        super().__init__()
        self.model = model
        self._loss, self._sequence_parallel_size = loss, sequence_parallel_size
        self.offsets: deque[Tensor | None] = deque()
        """Documents' offsets of the micro-batches to come, in the order in which the stage will see them."""

    def forward(self, tensors: StageTensors) -> StageTensors | Tensor:
        received, labels, *documents = tensors
        position_ids, document_ids = documents or (None, None)
        decoder = self.model.model
        static = None
        if decoder.is_first:
            hidden = decoder.embed(received)
            static = hidden if decoder.last_static_layer >= 0 else None
            length = received.shape[1]
        else:
            hidden, length = received, received.shape[1] * self._sequence_parallel_size
            if decoder.span.start <= decoder.last_static_layer:
                hidden, static = received.chunk(2, dim=-1)
        context = decoder.context(length, hidden, position_ids, document_ids, self.offsets.popleft())
        hidden, static = decoder.run(hidden, static, context)
        if decoder.is_last:
            return self._loss(decoder.norm(hidden), labels)
        if decoder.span.stop <= decoder.last_static_layer:
            assert static is not None
            hidden = torch.cat([hidden, static], dim=-1)
        return hidden, labels, *documents


class Pipeline(PipelineModule):
    """Pipeline module of this rank's stage, for DeepSpeed's pipeline engine.

    Args:
        model: the stage's layers.
        loss: of :class:`Stage`.
        sequence_parallel: stages exchange this rank's part of the sequence.
    """

    def __init__(
        self,
        model: CausalLM,
        topology: Topology,
        loss: Callable[[Tensor, Tensor], Tensor],
        sequence_parallel: bool,
    ) -> None:
        stages: list[nn.Module | None] = [None] * topology.pp_size
        stages[topology.pp_rank] = stage = Stage(model, loss, topology.tp_size if sequence_parallel else 1)
        with redirect_stdout(StringIO()):  # it prints its partition, which is ours
            super().__init__(stages, topology=topology.grid, partition_method="uniform")
        self._offsets = stage.offsets
        self._tied: list[tuple[nn.Parameter, ProcessGroup]] = []
        if model.config.tie_word_embeddings and topology.tied_group is not None:
            weight = model.canonical_parameters()["model.embed_tokens.weight"]
            weight.ds_pipe_replicated = topology.is_last_stage  # type: ignore[attr-defined]
            self._tied.append((weight, topology.tied_group))

    def expect(self, offsets: Iterable[Tensor | None]) -> None:
        """Give the stage the documents' offsets of each micro-batch that it is to run next, int32 [n] or None."""
        self._offsets.clear()
        self._offsets.extend(offsets)

    def get_tied_weights_and_groups(self) -> list[tuple[nn.Parameter, ProcessGroup]]:
        """Return the tied weights whose gradients the engine sums over stages before an optimiser step."""
        return self._tied
