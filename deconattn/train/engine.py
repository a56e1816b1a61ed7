"""Wrapper of DeepSpeed's engine, the only use of it: takes this rank's part of a model and flags, runs steps."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from itertools import islice
from typing import Any

import deepspeed
import torch
from deepspeed.runtime.pipe.topology import PipelineParallelGrid
from deepspeed.utils import groups
from torch import Tensor

from deconattn.config.deepspeed import deepspeed_config
from deconattn.config.flags import TrainingFlags
from deconattn.data import Batch
from deconattn.errors import UserError
from deconattn.model.causal_lm import CausalLM, LossSum
from deconattn.model.init import seed_generators
from deconattn.ops.cross_entropy import IGNORED
from deconattn.parallel.gradients import gradient_norm
from deconattn.parallel.pipeline import Pipeline, StageTensors, microbatch
from deconattn.parallel.second_copy import share_second_copies
from deconattn.parallel.topology import Topology
from deconattn.train.compiled import compile_layers
from deconattn.train.unwaited import without_waits
from deconattn.train.update import Update
from deconattn.train.zero_state import ZeroState

CAUSAL = 1e-5
"""Relative change of a loss up to which a model counts as causal; one that looks ahead changes by some 1e-3."""

BATCHES_A_STAGE = 8
"""Batches for each pipeline stage between two looks at a wish to stop: filling the pipeline costs an eighth at most."""


class Stopped(Exception):
    """Work was left off on every rank, because some rank was asked to stop."""


@dataclass(frozen=True)
class StepResult:
    """Result of one optimiser step.

    Attributes:
        loss: mean cross-entropy over all ranks' labels, nats.
        grad_norm: global norm of the averaged gradient before clipping; not finite if the step was skipped.
        skipped: the loss or the gradient was not finite, so the weights did not change.
        interrupted: some rank asked to stop.
        told: what each rank had to tell.
    """

    loss: float
    grad_norm: float
    skipped: bool
    interrupted: bool
    told: tuple[tuple[float, ...], ...] = ()


class Engine:
    """A training engine on any topology: DeepSpeed's plain engine, or its pipeline engine for several stages.

    The gradient is that of the loss summed over labels and divided by the number of positions, a constant, so
    that it does not depend on how labels fall into micro-batches; without document masks it is the mean loss.

    Args:
        model: what :func:`deconattn.parallel.build.build_model` made for this rank, filled.
        topology: this rank's place; by default data parallelism alone.
    """

    def __init__(self, model: CausalLM, flags: TrainingFlags, topology: Topology | None = None) -> None:
        self.flags, self.model = flags, model
        self.topology = topology or Topology.create()
        self.rank: int = deepspeed.comm.get_rank()
        self.accumulation_steps = flags.accumulation_steps(self.topology.dp_size)
        config = deepspeed_config(flags, self.accumulation_steps)
        self.stage: int = config.get("zero_optimization", {}).get("stage", 0)
        self._prepare(model)
        share_second_copies(self.topology, flags.engine.zero_hpz)
        if flags.engine.zero_quantized_weights:
            _check_parts(model, self.topology.dp_size)
        optimization = flags.optimization
        optimizer = torch.optim.AdamW(
            _parameter_groups(model, optimization.weight_decay),
            lr=optimization.lr,
            betas=(optimization.adam_beta1, optimization.adam_beta2),
            eps=optimization.adam_eps,
            fused=True,
        )
        self._engine, wrapped, _, _ = deepspeed.initialize(
            optimizer=optimizer, config=config, dist_init_required=False, **self._modules(model)
        )
        self.device: torch.device = self._engine.device
        self._optimizer = optimizer
        norm = without_waits(wrapped) if self.stage else lambda: gradient_norm(model.parameters(), self.topology)
        self._update = Update(optimizer, wrapped, self.stage, optimization.clip_grad, norm)
        self.state = ZeroState(model, optimizer, wrapped, self.stage, self.topology)

    def train_step(
        self,
        micro_batches: Iterable[Batch],
        learning_rate: float,
        stop: bool = False,
        tells: Sequence[float] = (),
    ) -> StepResult:
        """Run one optimiser step over this rank's micro-batches; a collective call.

        Args:
            micro_batches: as many as `accumulation_steps`.
            stop: this rank was asked to stop; every rank learns of it in the result.
            tells: numbers of this rank, as many as every other's, that all are to learn of.
        """
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        ranks = deepspeed.comm.get_world_size()
        # Loss, labels, ranks that want to stop, and a place for each rank's numbers, which a sum with zeros keeps.
        self._sums = torch.zeros(3 + ranks * len(tells), dtype=torch.float64, device=self.device)
        own_place = 3 + self.rank * len(tells)
        for place, value in [(2, float(stop)), *enumerate(tells, own_place)]:
            self._sums[place].fill_(value)  # an assignment would wait for the device
        self._update.begin(self._total_sums)
        if self.topology.pp_size > 1:
            self._engine.train_batch(self._fed(micro_batches))
        else:
            self._engine.train()
            for batch in micro_batches:
                self._engine.backward(self._counted(self._forward(batch), batch.labels))
                self._engine.step()
        total, labels, stops, *told, grad_norm = self._update.outcome()
        skipped = not math.isfinite(grad_norm)
        if not skipped:
            self.state.count_step()
        return StepResult(
            loss=total / max(1.0, labels),
            grad_norm=grad_norm,
            skipped=skipped,
            interrupted=stops > 0,
            told=tuple(tuple(told[i : i + len(tells)]) for i in range(0, len(told), len(tells) or 1)),
        )

    def seed(self, name: str) -> None:
        """Seed the global generators for what is computed next, so that it can be computed again after a resume.

        Draws are the replica's and the stage's own; tensor-parallel ranks, which hold parts of the same activations,
        draw alike.
        """
        seed_generators(self.flags.optimization.seed, f"{name}:{self.topology.dp_rank}:{self.topology.pp_rank}")

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Batch], stop: Callable[[], bool] | None = None) -> float:
        """Return mean cross-entropy, nats, over the labels of all replicas' batches; a collective call.

        Every replica must bring the same number of batches, each of one shape.

        Args:
            stop: whether this rank was asked to stop; asked between batches.

        Raises:
            Stopped: on every rank, after some rank was asked to stop.
        """
        self._sums = torch.zeros(2, dtype=torch.float64, device=self.device)
        stages, rest = self.topology.pp_size, iter(batches)
        while some := list(islice(rest, stages * BATCHES_A_STAGE if stages > 1 else 1)):
            if stop is not None and self._any(stop()):
                raise Stopped
            if stages > 1:
                fed, number = self._fed(some), len(some)
                self._engine.eval_batch(fed, reduce_output=None, bcast_loss=False, num_micro_batches=number)
            else:
                self._engine.eval()
                for batch in some:
                    self._counted(self._forward(batch), batch.labels)
        deepspeed.comm.all_reduce(self._sums)
        total, labels = self._sums.tolist()
        return total / max(1.0, labels)

    def check_causality(self, length: int, vocab_size: int) -> None:
        """Refuse a model whose loss changes with tokens that follow; a collective call of two forward passes.

        The real model, on its own devices, by its own kernels and exchanges: what it is trained by.

        Raises:
            UserError: on every rank.
        """
        half, rows = length // 2, self.flags.optimization.micro_batch_size
        ids = torch.randint(vocab_size, (rows, length + 1), generator=torch.Generator().manual_seed(0))
        labels = ids[:, 1:].clone()
        labels[:, : max(0, half - 8)] = labels[:, half:] = IGNORED  # few: each changes the mean by more
        others = ids[:, :-1].clone()
        others[:, half:] = (others[:, half:] + 1) % vocab_size
        documents: tuple[Tensor, ...] = ()
        if self.flags.data.doc_mask:  # a pipeline learns from its first batch what travels
            documents = (torch.arange(length).expand(rows, -1), torch.zeros_like(labels))
        losses = []
        for tokens in (ids[:, :-1], others):
            self.seed("causality")  # a variant that draws must draw the same twice
            losses.append(self.evaluate([Batch.of(torch.stack([tokens, labels, *documents]))]))
        own, other = losses
        if not abs(own - other) <= CAUSAL * abs(own):
            variants = ", ".join(dict.fromkeys(self.model.config.layer_variants))
            raise UserError(
                f"the loss of a token changes with those that follow it ({own:.7g}, then {other:.7g}): one of "
                f"{variants} looks ahead, or computes no finite numbers"
            )

    def destroy(self) -> None:
        """Free what DeepSpeed keeps alive, process groups included: for a process that makes more engines."""
        self._engine.destroy()
        # A pipeline's last losses: their graphs' hooks hold the engine, out of the garbage collector's sight.
        self._engine.loss = self._engine.pipe_buffers = None

    def barrier(self) -> None:
        deepspeed.comm.barrier()

    def _any(self, here: bool) -> bool:
        """Whether it is so on some rank; a collective call."""
        flag = torch.tensor(float(here), device=self.device)
        deepspeed.comm.all_reduce(flag)
        return bool(flag.item() > 0)

    def _prepare(self, model: CausalLM) -> None:
        model.model.activation_checkpointing = self.flags.engine.activation_checkpointing
        if self.flags.engine.compile:
            compile_layers(model.model)

    def _modules(self, model: CausalLM) -> dict[str, Any]:
        """Return the arguments of `deepspeed.initialize` that depend on model and topology."""
        if self.topology.pp_size > 1:
            return {"model": Pipeline(model, self.topology, self._stage_loss, self.flags.engine.sequence_parallel)}
        if self.topology.tp_size > 1:
            with redirect_stdout(StringIO()):  # it prints the topology
                return {"model": model, "mpu": PipelineParallelGrid(self.topology.grid)}
        groups.mpu = None  # or it would go on with an earlier engine's
        return {"model": model}

    def _forward(self, batch: Batch) -> LossSum:
        batch = batch.to(self.device)
        documents = batch.position_ids, batch.document_ids, batch.document_offsets
        return self._engine(batch.input_ids, batch.labels, *documents)

    def _fed(self, batches: Iterable[Batch]) -> Iterator[tuple[StageTensors, Tensor]]:
        """Return what a pipeline is fed with, after telling this rank's stage what does not come with it."""
        batches = list(batches)
        offsets = [batch.document_offsets for batch in batches]
        self._engine.module.expect(o if o is None else o.to(self.device, non_blocking=True) for o in offsets)
        return (microbatch(batch.to(self.device)) for batch in batches)  # DeepSpeed would wait for each copy

    def _stage_loss(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """Return the last pipeline stage's loss."""
        return self._counted(LossSum(self.model.lm_head(hidden, labels), (labels != IGNORED).sum()), labels)

    def _counted(self, loss: LossSum, labels: Tensor) -> Tensor:
        """Return the loss to differentiate, after adding it to the step's sums."""
        if self.topology.tp_rank == 0:  # its neighbours have the same one
            self._sums[0] += loss.total.detach()
            self._sums[1] += loss.labels
        mean = loss.total / labels.numel()
        # A loss that is not finite must not pass unnoticed behind finite gradients, nor on other ranks.
        finite = torch.where(mean.detach().isfinite(), 1.0, math.nan)
        return mean * finite

    def _total_sums(self) -> Tensor:
        """Return the step's sums over all ranks; a collective call."""
        deepspeed.comm.all_reduce(self._sums)
        return self._sums


def _check_parts(model: CausalLM, ranks: int) -> None:
    """Refuse what DeepSpeed's quantiser cannot take: it works on eight elements at a time.

    Raises:
        UserError: naming a tensor of which a rank's part is none of whole eights.
    """
    for name, parameter in model.named_parameters():
        size = getattr(parameter, "ds_numel", parameter.numel())
        if -(-size // ranks) % 8:
            raise UserError(
                f"--zero-quantized-weights: {name} of {size} elements makes parts of {-(-size // ranks)} on {ranks} "
                "data-parallel ranks, and DeepSpeed quantises multiples of 8: use fewer ranks, or leave the flag out"
            )


def _parameter_groups(model: CausalLM, weight_decay: float) -> list[dict[str, Any]]:
    """Return AdamW's parameter groups: weight decay on matrices, none on vectors (norms, biases)."""
    parameters = list(model.parameters())
    matrices: list[Tensor] = [parameter for parameter in parameters if parameter.ndim >= 2]
    vectors: list[Tensor] = [parameter for parameter in parameters if parameter.ndim < 2]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
