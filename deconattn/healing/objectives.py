"""Objectives of a distillation: each mixer's output, then the predictions, as the teacher has them.

In the order of MOHAWK (Bick et al. 2024, "Transformers to SSMs") and LoLCATs (Zhang et al. 2024): first layer by layer,
each of the teacher's input, so that no layer learns to make up for another's errors; then the whole model.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from deconattn.healing.teacher import Documents, Shown, Teacher
from deconattn.mixers import MixerContext
from deconattn.model.block import Block
from deconattn.model.causal_lm import CausalLM, LossSum
from deconattn.ops.cross_entropy import IGNORED
from deconattn.ops.precision import at_least_fp32
from deconattn.parallel.collectives import all_reduce

LEAST = 1e-8
"""Mean square of a teacher's output below which an error is no longer taken relative to it."""


class LogitsObjective:
    """KL divergence of the teacher's predictions from the model's, of tokens that have a label."""

    def __init__(self, teacher: Teacher, temperature: float) -> None:
        self._teacher, self._temperature = teacher, temperature

    def __call__(
        self,
        model: CausalLM,
        input_ids: Tensor,
        labels: Tensor,
        documents: Documents,
        run: Callable[..., Tensor] | None,
    ) -> LossSum:
        taught = self._teacher.predictions(input_ids, documents, self._temperature)
        decoder = model.model if run is None else partial(run, model.model)
        total = model.lm_head(decoder(input_ids, *documents), labels, taught)
        return LossSum(total, (labels != IGNORED).sum())


class LayerObjective:
    """Relative squared error of each mixer's output, both given what the teacher's layer was: its mean over layers.

    A token's error is ||ours - theirs||^2 / ||theirs||^2, so that layers and tokens weigh alike and no sum depends on
    how tokens fall into micro-batches. A fixed stream is the model's own, as its layers make it; no gradient goes
    through it from one layer to another.
    """

    def __init__(self, teacher: Teacher) -> None:
        self._teacher = teacher

    def __call__(
        self,
        model: CausalLM,
        input_ids: Tensor,
        labels: Tensor,
        documents: Documents,
        run: Callable[..., Tensor] | None,
    ) -> LossSum:
        decoder, rows, length = model.model, len(input_ids), input_ids.shape[1]
        with torch.no_grad():
            embedded = decoder.embed(input_ids)
        static = embedded if decoder.last_static_layer >= 0 else None
        stream = embedded[rows:]
        alone = decoder.context(length, stream)
        context = decoder.context(length, embedded, *documents)
        errors = []
        for index, shown in enumerate(self._teacher.layers(input_ids, documents)):
            block = decoder.blocks[index]
            if index == decoder.last_fixed_layer:
                context = replace(context, output_rows=rows)
            hidden = torch.cat([shown.hidden, stream]) if index <= decoder.last_fixed_layer else shown.hidden
            work = (block, hidden, static, context, shown)
            if decoder.activation_checkpointing and torch.is_grad_enabled():
                errors.append(checkpoint(_error, *work, use_reentrant=False))
            else:
                errors.append(_error(*work))
            if index < decoder.last_fixed_layer:
                with torch.no_grad():
                    stream = block(stream, None if static is None else static[rows:], alone)
            elif index == decoder.last_fixed_layer:
                context, static = context.rows(rows), None if static is None else static[:rows]
        total = torch.stack(errors).mean()
        group = self._teacher.topology.tp_group
        if group is not None and self._teacher.sequence_parallel:
            # Each rank has the errors of its part of the sequence, and the gradient of those.
            total = total + (all_reduce(group, total.detach()) - total.detach())
        return LossSum(total, torch.tensor(labels.numel(), device=labels.device))


def _error(block: Block, hidden: Tensor, static: Tensor | None, context: MixerContext, shown: Shown) -> Tensor:
    """Return the sum of the tokens' errors in one layer, a scalar in at least fp32."""
    _, *inputs = block.mixer_inputs(hidden, static)
    target = at_least_fp32(shown.mixed)
    mixed = at_least_fp32(block.self_attn(*inputs, context)[: len(target)])
    scale = target.square().sum(-1).clamp_min(LEAST * target.shape[-1])
    return ((mixed - target).square().sum(-1) / scale).sum()
