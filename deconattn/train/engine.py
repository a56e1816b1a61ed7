"""Wrapper of DeepSpeed's engine, the only use of it: takes this rank's part of a model and flags, runs steps."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import deepspeed
import torch
from deepspeed.accelerator import get_accelerator
from deepspeed.utils import groups
from torch import Tensor

from deconattn.config.deepspeed import deepspeed_config
from deconattn.config.flags import TrainingFlags
from deconattn.data import Batch
from deconattn.errors import UserError
from deconattn.layers.config import ModelConfig
from deconattn.model.causal_lm import CausalLM, LossSum, Objective
from deconattn.model.held_streams import StreamTrial
from deconattn.model.init import seed_generators
from deconattn.model.recompute import recompute
from deconattn.ops.cross_entropy import IGNORED
from deconattn.parallel.build import build_model
from deconattn.parallel.gradients import gradient_norm
from deconattn.parallel.partitions import Partitions
from deconattn.parallel.pipeline import Pipeline, StageTensors, microbatch
from deconattn.parallel.second_copy import share_second_copies
from deconattn.parallel.topology import Topology
from deconattn.train.compiled import compile_layers
from deconattn.train.fixed_streams import StreamRunner
from deconattn.train.muon import MuonWithAdamW
from deconattn.train.optimizers import make_optimizer, moments_of
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
        z_loss: mean of what `--z-loss` adds to it.
        grad_norm: global norm of the averaged gradient before clipping; not finite if the step was skipped.
        skipped: the loss or the gradient was not finite, so the weights did not change.
        interrupted: some rank asked to stop.
        told: what each rank had to tell.
    """

    loss: float
    z_loss: float
    grad_norm: float
    skipped: bool
    interrupted: bool
    told: tuple[tuple[float, ...], ...] = ()


class Engine:
    """A training engine on any topology: DeepSpeed's plain engine, or its pipeline engine for several stages.

    The gradient is that of the loss summed over labels and divided by the number of positions, a constant, so
    that it does not depend on how labels fall into micro-batches; without document masks it is the mean loss.

    Args:
        model: what :func:`empty_model` made for this rank, filled.
        topology: this rank's place; by default data parallelism alone.
        frozen: the step until which parameters are frozen, by canonical name, of those that are.
    """

    def __init__(
        self,
        model: CausalLM,
        flags: TrainingFlags,
        topology: Topology | None = None,
        frozen: Mapping[str, int] | None = None,
    ) -> None:
        self.flags, self.model = flags, model
        self._step = 0
        self.topology = topology or Topology.create()
        self.rank: int = deepspeed.comm.get_rank()
        self.accumulation_steps = flags.accumulation_steps(self.topology.dp_size)
        config = deepspeed_config(flags, self.accumulation_steps)
        self.stage = _stage(config)
        self._prepare(model)
        share_second_copies(self.topology, flags.engine.zero_hpz)
        if flags.engine.zero_quantized_weights:
            _check_parts(model, self.topology.zero_size)
        optimizer = make_optimizer(model, flags.optimization, frozen)
        self._hold_gradients(optimizer)
        moments = moments_of(optimizer)
        self._engine, wrapped, _, _ = deepspeed.initialize(
            optimizer=optimizer, config=config, dist_init_required=False, **self._modules(model)
        )
        self.device: torch.device = self._engine.device
        self._optimizer = optimizer
        self._shape: torch.Size | None = None
        norm = without_waits(wrapped) if self.stage else lambda: gradient_norm(model.parameters(), self.topology)
        self._update = Update(optimizer, wrapped, self.stage, flags.optimization.clip_grad, norm)
        if isinstance(optimizer, MuonWithAdamW):
            optimizer.locate(wrapped, self.stage, self.topology.tp_group)
        self.state = ZeroState(model, optimizer, wrapped, self.stage, self.topology, moments)
        self.streams = StreamRunner(model.config, flags, self.topology, wrapped)

    def train_step(
        self,
        micro_batches: Iterable[Batch],
        learning_rate: float,
        stop: bool = False,
        tells: Sequence[float] = (),
        step: int = 0,
        objective: Objective | None = None,
    ) -> StepResult:
        """Run one optimiser step over this rank's micro-batches; a collective call.

        Args:
            micro_batches: of one shape, as many on every rank.
            stop: this rank was asked to stop; every rank learns of it in the result.
            tells: numbers of this rank, as many as every other's, that all are to learn of.
            step: number of the step in the run, from 0: what is frozen until a later one keeps its weights.
            objective: what is minimised in the place of the loss on labels.
        """
        given = list(micro_batches)
        self._accumulate(len(given))
        self._step = step
        for group in self._optimizer.param_groups:
            group["lr"] = 0.0 if step < group["until"] else learning_rate  # which scales the decay, too
        ranks = deepspeed.comm.get_world_size()
        # Cross-entropy, z-loss, labels, ranks that want to stop, and a place for each rank's numbers, which a sum with
        # zeros keeps.
        self._sums = torch.zeros(4 + ranks * len(tells), dtype=torch.float64, device=self.device)
        own_place = 4 + self.rank * len(tells)
        for place, value in [(3, float(stop)), *enumerate(tells, own_place)]:
            self._sums[place].fill_(value)  # an assignment would wait for the device
        self._update.begin(self._total_sums)
        if self.topology.pp_size > 1:
            self._engine.train_batch(self._fed(given))
        else:
            self._engine.train()
            for batch, run in self.streams.beside(given, self._engine.is_gradient_accumulation_boundary):
                self._engine.backward(self._counted(self._forward(batch, run, objective), batch.labels.numel()))
                self._engine.step()
        total, z_loss, labels, stops, *told, grad_norm = self._update.outcome()
        skipped = not math.isfinite(grad_norm)
        self.state.count_step(step, not skipped)
        labels = max(1.0, labels)
        return StepResult(
            loss=total / labels,
            z_loss=z_loss / labels,
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
        self._sums = torch.zeros(3, dtype=torch.float64, device=self.device)
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
                    self._counted(self._forward(batch), batch.labels.numel())
        deepspeed.comm.all_reduce(self._sums)
        total, _, labels = self._sums.tolist()
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

    @torch.no_grad()
    def try_streams(self, length: int, vocab_size: int) -> None:
        """Try whether fixed streams can be held over a step, where that is not known; a collective call."""
        if not self.streams.untried:
            return
        trial, shape = StreamTrial(), (self.flags.optimization.micro_batch_size, length)
        self._engine.train()  # what draws does so in training
        for number in range(2):
            self.seed(f"streams {number}")
            ids = torch.randint(vocab_size, shape, generator=torch.Generator().manual_seed(number))
            self._forward(Batch(ids, ids), trial)
        self.streams.settle(self._any(trial.differs))

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
        recompute(model.model, self.flags.engine.recompute)
        if model.model.is_last:
            model.lm_head.z_loss = self.flags.optimization.z_loss
        if self.flags.engine.compile:
            compile_layers(model.model)

    def _modules(self, model: CausalLM) -> dict[str, Any]:
        """Return the arguments of `deepspeed.initialize` that depend on model and topology."""
        if self.topology.pp_size > 1:
            return {"model": Pipeline(model, self.topology, self._stage_loss, self.flags.engine.sequence_parallel)}
        if self.topology.mpu is not None:
            return {"model": model, "mpu": self.topology.mpu}
        groups.mpu = None  # or it would go on with an earlier engine's
        return {"model": model}

    def _hold_gradients(self, optimizer: torch.optim.Optimizer) -> None:
        """Have gradients of what is frozen be zero: they are in no norm, and no moment moves."""

        def held(until: int) -> Callable[[Tensor], Tensor]:
            return lambda gradient: torch.zeros_like(gradient) if self._step < until else gradient

        for group in optimizer.param_groups:
            for parameter in group["params"] if group["until"] else ():
                parameter.register_hook(held(group["until"]))

    def _forward(
        self, batch: Batch, run: Callable[..., Tensor] | None = None, objective: Objective | None = None
    ) -> LossSum:
        batch = self._part(batch).to(self.device)
        documents = batch.position_ids, batch.document_ids, batch.document_offsets
        return self._engine(batch.input_ids, batch.labels, *documents, run, objective)

    def _accumulate(self, micro_batches: int) -> None:
        """Have the engine take so many micro-batches as a step."""
        engine = self._engine
        if engine.gradient_accumulation_steps() != micro_batches:
            a_micro_batch = engine.train_micro_batch_size_per_gpu() * engine.dp_world_size
            engine.set_train_batch_size(micro_batches * a_micro_batch)
            engine.micro_steps = 0  # a step ends where their number is a multiple
            if hasattr(engine.optimizer, "gradient_accumulation_steps"):  # offloading ZeRO has a copy
                engine.optimizer.gradient_accumulation_steps = micro_batches

    def _fed(self, batches: Iterable[Batch]) -> Iterator[tuple[StageTensors, Tensor]]:
        """Return what a pipeline is fed with, after telling this rank's stage what does not come with it."""
        batches = list(batches)
        shape = batches[0].labels.shape
        if shape != self._shape:  # what stages have for one another is of the last one
            self._engine.reset_activation_shape()
            self._shape = shape
        offsets = [batch.document_offsets for batch in batches]
        self._engine.module.expect(o if o is None else o.to(self.device, non_blocking=True) for o in offsets)
        # DeepSpeed would wait for each copy
        return (microbatch(self._part(batch).to(self.device)) for batch in batches)

    def _part(self, batch: Batch) -> Batch:
        """Return this rank's part of a batch, where several share each sequence."""
        topology = self.topology
        return batch.part(topology.cp_rank, topology.cp_size) if topology.cp_size > 1 else batch

    def _stage_loss(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """Return the last pipeline stage's loss."""
        return self._counted(self.model.lm_head.loss(hidden, labels), labels.numel() * self.topology.cp_size)

    def _counted(self, loss: LossSum, tokens: int) -> Tensor:
        """Return the loss to differentiate, after adding it to the step's sums.

        Args:
            tokens: of the whole sequences, this rank's part of which it is of.
        """
        if self.topology.tp_rank == 0:  # its neighbours have the same one
            if loss.parts is None:
                self._sums[0] += loss.total.detach()
            else:
                self._sums[:2] += loss.parts
            self._sums[2] += loss.labels
        # DeepSpeed takes the mean over all that hold these weights, ranks that share a sequence among them.
        mean = loss.total * self.topology.cp_size / tokens
        # A loss that is not finite must not pass unnoticed behind finite gradients, nor on other ranks.
        finite = torch.where(mean.detach().isfinite(), 1.0, math.nan)
        return mean * finite

    def _total_sums(self) -> Tensor:
        """Return the step's sums over all ranks; a collective call."""
        deepspeed.comm.all_reduce(self._sums)
        return self._sums


def empty_model(config: ModelConfig, flags: TrainingFlags, topology: Topology) -> CausalLM:
    """Build this rank's part of a model where the engine will have it: on its device, in its dtype, partitioned by
    ZeRO-3; not initialised, a collective call."""
    settings = deepspeed_config(flags, flags.accumulation_steps(topology.dp_size))
    share_second_copies(topology, flags.engine.zero_hpz)
    partition = Partitions(settings, topology) if _stage(settings) == 3 else None
    dtype = torch.bfloat16 if flags.engine.precision == "bf16" else torch.float32
    device = get_accelerator().current_device_name()
    return build_model(config, topology, flags.engine.sequence_parallel, device, dtype, partition)


def _stage(config: dict[str, Any]) -> int:
    """Return the ZeRO stage of a DeepSpeed configuration."""
    stage: int = config.get("zero_optimization", {}).get("stage", 0)
    return stage


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
