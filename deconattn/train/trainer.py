"""Training loop: data in step order, optimiser steps, validation, checkpoints, and an orderly end."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import torch

from deconattn import durable
from deconattn.checkpoint.format import Checkpoint
from deconattn.checkpoint.manifest import Progress
from deconattn.checkpoint.origins import continued_streams
from deconattn.config.command_line import check_same_run
from deconattn.config.flags import TrainingFlags, model_config
from deconattn.config.run_config import RUN_CONFIG
from deconattn.data import Manifest
from deconattn.errors import UserError
from deconattn.model.causal_lm import CausalLM
from deconattn.model.init import FIXED_TEXT, fill_streams, initialize, seed_generators
from deconattn.model.streams import Streams
from deconattn.parallel.process_group import from_rank_0, host_of, rank_0_alone, tell_host
from deconattn.parallel.topology import Topology
from deconattn.program import command, plugin_flag, quoted
from deconattn.train.checkpoints import Checkpoints
from deconattn.train.engine import Engine, StepResult, Stopped, empty_model
from deconattn.train.healing import Healing
from deconattn.train.inputs import check_identities, check_phase_identities, open_data
from deconattn.train.metrics import Metrics, memory_gib, writing
from deconattn.train.pace import Pace, Stragglers, spread
from deconattn.train.profiling import StepProfiler
from deconattn.train.resuming import load_buffers, load_checkpoint, longer_streams, verified_checkpoint
from deconattn.train.run_folder import (
    check_space,
    claim_run_folder,
    data_arguments,
    resolved_config,
    set_aside,
)
from deconattn.train.saving import GivenUp, Saver
from deconattn.train.schedule import Schedule, check_length, check_steps, schedule_change
from deconattn.train.throughput import Clock

Scorer = Callable[[Path, Callable[[], bool]], dict[str, float] | None]
"""Function from a step-N folder to benchmark scores by name; its second argument asks whether to stop, and None is
returned if so."""


class StopFlag(Protocol):
    """Flag that is true once the run is to stop.

    Attributes:
        launcher_lost: nobody asked, but the process that started this rank is gone.
    """

    @property
    def launcher_lost(self) -> bool: ...

    def __bool__(self) -> bool: ...


class Trainer:
    """Training of one run, from flags to its last checkpoint; made and run on every rank.

    Args:
        stop: read between steps, and between the batches of validations and scores.
        scorer: scores the checkpoints, on rank 0; None where the flags ask for no benchmark.
        manifests: of the corpora by folder, where rank 0 has read them already.

    Attributes:
        launcher_lost: the run has stopped because some rank's launcher was gone.

    Raises:
        UserError: whatever is wrong with data, folder or checkpoint, before the first step.
    """

    def __init__(
        self,
        flags: TrainingFlags,
        stop: StopFlag,
        scorer: Scorer | None = None,
        manifests: Mapping[str, Manifest] | None = None,
    ) -> None:
        self.flags, self.stop, self._scorer = flags, stop, scorer
        self.launcher_lost = False
        self._streams: list[str] = []
        self.run_folder, self._lock = claim_run_folder(flags)
        try:
            self._open(manifests)
        except BaseException:
            self._release()
            raise

    def _open(self, manifests: Mapping[str, Manifest] | None) -> None:
        flags = self.flags
        self.data = open_data(data_arguments(flags, self.run_folder), flags, self.run_folder, manifests)
        self.model_config = model_config(flags.model, self.data.vocab_size, flags.plan.longest)
        check_space(self.run_folder, self.model_config, flags.run.keep)
        checkpoint = self._checkpoint_to_resume()
        seed_generators(flags.optimization.seed, "start")
        self.topology = Topology.create(flags.engine.tp, flags.engine.pp, flags.engine.cp)
        self._healing = Healing(flags, self.model_config, checkpoint)
        model = self._build_model(checkpoint)
        self.engine = Engine(model, flags, self.topology, self._healing.frozen)
        self._healing.attach(self.engine)
        self.progress = Progress()
        if checkpoint is not None:
            load_checkpoint(self.engine, checkpoint)
            self.progress = checkpoint.progress
        self.engine.check_causality(flags.data.seq_len, self.data.vocab_size)
        self.engine.try_streams(flags.data.seq_len, self.data.vocab_size)
        identities, of_phases = self.data.identities, self.data.phase_identities
        self.config = resolved_config(flags, self.model_config, identities, self._healing.origin, of_phases)
        self.metrics: Metrics | None = None
        before = None if checkpoint is None else checkpoint.flags
        self._val_loss, scored = from_rank_0(lambda: self._open_metrics(before))
        step = self.progress.step
        run, rank = flags.run, torch.distributed.get_rank()
        self.profiler = StepProfiler(self.run_folder, run.profiled_steps, run.profile_ranks, rank)
        tell_host()
        stages = [self.topology.stage_of(rank) for rank in range(torch.distributed.get_world_size())]
        self._stragglers = Stragglers(stages, step)
        self._validated_step = -1 if self._val_loss is None else step
        self._scored_step = step if scored else -1
        run = flags.run
        saver = Saver(
            self.engine,
            self.run_folder,
            self.config,
            self.data.write_tokenizer,
            run.keep,
            run.keep_every,
            run.save_mode == "async",
            self._sync_metrics,
        )
        saved = step if checkpoint else -1
        self._checkpoints = Checkpoints(saver, self.run_folder, run.save_mode == "sync", saved, self._tell)

    def _open_metrics(self, before: TrainingFlags | None) -> tuple[float | None, bool]:
        """Begin to tell of the run; returns the validation loss, and whether there are scores, of the step it is at."""
        if self.flags.run.resume_from is not None:
            with writing(self.run_folder):
                set_aside(self.run_folder, self.progress.step)
        with writing(self.run_folder / RUN_CONFIG):
            durable.write_json(self.run_folder / RUN_CONFIG, self.config)
        run, step = self.flags.run, self.progress.step
        self.metrics = Metrics(self.run_folder, self.config, run, self.flags.total_steps, step)
        if before and (line := schedule_change(before, self.flags, step)):
            self._say(line)
        return self.metrics.told(step)

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()

    def run(self) -> None:
        """Train to the last step, or until asked to stop; either way there is a checkpoint of the step that it ends at.

        Raises:
            UserError: too many steps in a row without a finite loss and gradient, or a checkpoint or metrics that
                could not be written.
        """
        topology, pin = self.topology, self.engine.device.type == "cuda"
        try:
            reports = self.data.packing_report(), self.data.validation_report(), self.engine.streams.report()
            for line in [self._arithmetic(), *self._streams, *self._healing.report(), *chain(*reports)]:
                self._say(line)
            if plan := self.profiler.plan(self.progress.step):
                self._say(plan)
            self._batches = self.data.loader(self.progress.step, topology.dp_rank, topology.dp_size, pin)
            with closing(self._batches):
                interrupted = self._train()
                self.profiler.close(self.progress.step)
                if interrupted:
                    self._interrupted()
                else:
                    self._finished()
        finally:
            self._checkpoints.close(self.flags.engine.distributed_timeout_minutes * 60)
            if self.metrics:
                self.metrics.close()
            self._release()

    def _arithmetic(self) -> str:
        """Say what is computed in, which hangs on the machine where no flag says it, and on what."""
        device, ranks = self.engine.device, torch.distributed.get_world_size()
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
        return f"{self.flags.engine.precision} on {ranks} x {name}, ZeRO stage {self.engine.stage}"

    def _train(self) -> bool:
        """Run the steps; return whether a stop was asked for before all was done."""
        flags, total = self.flags, self.flags.total_steps
        in_a_row, replicas = 0, self.topology.dp_size
        schedule = Schedule.of(flags)
        if self._judge():  # what a stop or a kill has left out after the step that we go on from
            return True
        clock, begun = Clock(self.model_config, replicas), self.progress.step
        # ZeRO-3's gatherings run ahead of the host on a GPU, and measuring them there is not tried yet.
        untried = self.engine.stage == 3 and self.engine.device.type == "cuda"
        pace = Pace(self.engine.device, alone=untried or torch.distributed.get_world_size() == 1)
        while self.progress.step < total:
            step = self.progress.step
            rate, here = schedule.rate(step), flags.plan.at(step)
            if here.phase and (step == here.first or step == begun):
                self._say(f"phase {here.phase}, from step {here.first + 1}: {flags.plan.phases[here.phase - 1].shown}")
            objective = self._healing.objective(step, self._say)
            profiled = step + 1 in self.profiler.steps
            has_row = (step + 1) % flags.run.log_every == 0 or step + 1 == total
            tells = pace.numbers(memory_gib()) if has_row else []
            self.engine.seed(f"step {step}")
            with pace.step(counts=not profiled), self.profiler.step(step + 1):
                batches = self._batches.take(here.micro_batches(replicas))
                result = self.engine.train_step(batches, rate, bool(self.stop), tells, step, objective)
            state, skipped = self.engine.state, self.progress.skipped_steps + result.skipped
            self.progress = Progress(step + 1, state.optimizer_steps, skipped, dict(state.frozen_steps))
            clock.tick(here)
            self._checkpoints.look()
            if profiled:
                clock.restart()
            in_a_row = in_a_row + 1 if result.skipped else 0
            if result.skipped:
                self._say(f"step {step + 1}: loss {result.loss}, gradient norm {result.grad_norm}: step skipped")
            if self.metrics and (has_row or result.skipped):
                marks = {"profiled": True} if profiled else {}
                self.metrics.step(self._row(result, rate) | clock.rates() | spread(result.told) | marks)
                self._name_stragglers(result.told)
            if in_a_row >= flags.optimization.max_nonfinite:
                raise UserError(
                    f"{in_a_row} steps in a row up to step {step + 1} had no finite loss or gradient: resume from an "
                    "earlier checkpoint with a lower --lr, or inspect the data"
                )
            if result.interrupted and step + 1 < total:
                return True
            # A checkpoint whose last step was skipped would be a poor place to come back to.
            if ((step + 1) % flags.run.save_every == 0 and not result.skipped) or step + 1 == total:
                self._checkpoints.save(self.progress)
                clock.restart()
            if self._is_due(flags.run.eval_every) or self._is_due(flags.run.save_every):
                if self._judge():
                    return True
                clock.restart()
        return False

    def _is_due(self, every: int) -> bool:
        step = self.progress.step
        return step > 0 and (step % every == 0 or step == self.flags.total_steps)

    def _judge(self) -> bool:
        """Validate and score where this step is due for it and has not been; return whether a stop came between.

        All that a resume needs to make up for what was left out is the checkpoint of this step.
        """
        try:
            if self._is_due(self.flags.run.eval_every):
                self._validate()
            if self._is_due(self.flags.run.save_every) and self._checkpoints.has(self.progress.step):
                self._score()
        except Stopped:
            return True
        return False

    def _finished(self) -> None:
        self._doing("writing the checkpoint")
        folder = self._checkpoints.last(self.progress)
        if self._val_loss is not None:
            self._say(f"validation loss: {self._val_loss:.4f} nats")
        if self.progress.skipped_steps:
            self._say(f"steps skipped for want of a finite loss or gradient: {self.progress.skipped_steps}")
        self._say(f"checkpoint: {folder}")
        out = self.run_folder.with_name(f"{self.run_folder.name}-hf")
        plugins = plugin_flag(self.flags.model.plugin)
        self._say(f"export: {command('export')} {quoted(self.run_folder)} {quoted(out)}{plugins}")

    def _interrupted(self) -> None:
        self._doing("writing the checkpoint")
        folder = self._checkpoints.last(self.progress)
        lost = [False] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(lost, self.stop.launcher_lost)
        self.launcher_lost = any(lost)
        why = "since the launcher is gone" if self.launcher_lost else "on request"
        self._say(f"stopped {why} at step {self.progress.step}")
        self._say(f"checkpoint: {folder}")
        plugins = plugin_flag(self.flags.model.plugin)
        self._say(f"resume: {command('train')} --save {quoted(self.run_folder)} --resume{plugins}")

    def _validate(self) -> None:
        step = self.progress.step
        if not self.data.has_validation or self._validated_step == step:
            return
        batches = self.data.validation_batches(self.topology.dp_rank, self.topology.dp_size)
        self._doing("validating")
        self.engine.seed(f"validation after step {step}")
        self._val_loss = self.engine.evaluate(batches, lambda: bool(self.stop))
        self._validated_step = step
        if self.metrics:
            self.metrics.validation(step, self._val_loss)

    def _doing(self, what: str) -> None:
        if self.metrics:
            self.metrics.display.doing(what)

    def _tell(self, failed: GivenUp) -> None:
        self._say(f"step {failed.step}: no checkpoint ({failed.reason}); the next save will be another attempt")
        if self.metrics:
            self.metrics.save_failed(failed.step, failed.reason)

    def _sync_metrics(self) -> None:
        if self.metrics:
            self.metrics.sync()

    def _score(self) -> None:
        """Score this step's checkpoint on rank 0, while the others wait without a collective, which would time out.

        Raises:
            Stopped: on every rank, after some rank was asked to stop.
        """
        step, scorer = self.progress.step, self._scorer
        if scorer is None or self._scored_step == step:
            return
        self._checkpoints.settle()
        if not self._checkpoints.has(step):
            self._say(f"step {step}: not scored, for want of a checkpoint")
            return

        def score(stop: Callable[[], bool]) -> bool:
            """Whether it came to an end."""
            scores: dict[str, float] | None = {}
            try:
                self.engine.seed(f"scores after step {step}")
                scores = scorer(self._checkpoints.folder(step), stop)
            except Exception as error:  # what was trained matters more, and the checkpoint can be scored later
                reason = (str(error).splitlines() or [""])[0]
                self._say(f"step {step}: not scored, {type(error).__name__}: {reason}")
            if self.metrics and scores:
                self.metrics.scores(step, scores)
            return scores is not None

        if not rank_0_alone(score, lambda: bool(self.stop)):
            raise Stopped
        self._scored_step = step

    def _checkpoint_to_resume(self) -> Checkpoint | None:
        if not self.flags.run.resume:
            return None
        checkpoint = verified_checkpoint(self.flags, self.run_folder)
        if checkpoint is not None:
            check_same_run(checkpoint.flags, self.flags, str(self.run_folder / RUN_CONFIG))
            check_identities(checkpoint.config.data, self.data.identities)
            check_length(self.flags, checkpoint.step)
            check_steps(checkpoint.flags, self.flags, checkpoint.step)
            check_phase_identities(checkpoint.config.phase_data, self.data.phase_identities, checkpoint.step)
        return checkpoint  # None: the run was killed before its first checkpoint and starts over

    def _build_model(self, checkpoint: Checkpoint | None) -> CausalLM:
        model = empty_model(self.model_config, self.flags, self.topology)
        if checkpoint is None:
            needs_text = "text" in Streams.of(self.model_config.layer_variants).fixed
            initialize(model, self.flags.optimization.seed, self.data.fixed_ids() if needs_text else None)
            self._healing.fill_buffers(model)
        else:
            if longer := longer_streams(model, checkpoint):
                seed, text = self.flags.optimization.seed, self.flags.data.fixed_text
                fill_streams(model, seed, self.data.fixed_ids() if FIXED_TEXT in longer else None)
                self._streams = continued_streams(longer, str(checkpoint.folder), seed, text)
            load_buffers(model, checkpoint)
            if FIXED_TEXT in (buffers := dict(model.named_buffers())):
                self.data.check_fixed_text(buffers[FIXED_TEXT].cpu())
        return model

    def _row(self, result: StepResult, rate: float) -> dict[str, Any]:
        plan = self.flags.plan
        here = plan.at(self.progress.step - 1)
        return {
            "step": self.progress.step,
            "loss": result.loss,
            **({"z_loss": result.z_loss} if self.flags.optimization.z_loss else {}),
            "grad_norm": result.grad_norm,
            "learning_rate": rate,
            "tokens": plan.tokens(self.progress.step),
            **({"global_batch_size": here.batch} if len(plan.stretches) > 1 else {}),
            **({"phase": here.phase} if plan.phases else {}),
            **self._healing.marks(self.progress.step - 1),
            "skipped_steps": self.progress.skipped_steps,
            "memory_gib": round(memory_gib(), 3),
        }

    def _name_stragglers(self, told: Sequence[Sequence[float]]) -> None:
        for rank, busy, like in self._stragglers.judge(told, self.progress.step) if told else []:
            self._say(
                f"warning: rank {rank} on {host_of(rank)} holds up the others: it is busy {busy:.3g} s a step, "
                f"where {like:.3g} s is usual"
            )

    def _say(self, line: str) -> None:
        if self.metrics:
            self.metrics.display.say(line)
