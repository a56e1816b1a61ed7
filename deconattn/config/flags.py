"""Flags of a run: all groups together, what is checked across them, and the model that they describe.

The variants, and PyTorch with them, are imported where flags are checked: `--help` does not wait for them.
"""

import math
from dataclasses import dataclass, field, replace
from functools import cached_property

from deconattn.config.flag_groups import (
    DataFlags,
    EngineFlags,
    EvaluationFlags,
    HealingFlags,
    ModelFlags,
    OptimizationFlags,
    RunFlags,
)
from deconattn.config.healing import check_healing
from deconattn.config.pattern import layer_variants
from deconattn.config.probe_source import check_probe
from deconattn.config.steps import StepPlan, Stretch
from deconattn.errors import UserError
from deconattn.layers.config import ModelConfig
from deconattn.layers.head_parts import check_heads, simplest
from deconattn.layers.rope_scaling import ntk_theta
from deconattn.layers.rope_scaling import parse as parse_rope_scaling

VOCABULARY_MULTIPLE = 128
"""A vocabulary is rounded up to this multiple: head and embedding then have sizes that hardware likes."""


@dataclass(frozen=True)
class TrainingFlags:
    """Train a language model whose layers mix tokens by any attention variant."""

    model: ModelFlags = field(default_factory=ModelFlags)
    data: DataFlags = field(default_factory=DataFlags)
    optimization: OptimizationFlags = field(default_factory=OptimizationFlags)
    engine: EngineFlags = field(default_factory=EngineFlags)
    run: RunFlags = field(default_factory=RunFlags)
    evaluation: EvaluationFlags = field(default_factory=EvaluationFlags)
    healing: HealingFlags = field(default_factory=HealingFlags)

    @cached_property
    def plan(self) -> StepPlan:
        """What each step takes. Raises UserError for a phase that makes no sense."""
        return StepPlan.of(self)

    @property
    def total_steps(self) -> int:
        """Optimiser steps: `--steps`, or as many as `--tokens` takes."""
        tokens = self.optimization.tokens
        return self.optimization.steps if tokens is None else self.plan.steps_for(tokens)

    @property
    def warmup_steps(self) -> int:
        given = self.optimization.warmup_steps
        return given if given is not None else min(2000, self.total_steps // 10)

    @property
    def decay_steps(self) -> int:
        """Steps in which `--lr-schedule wsd` falls."""
        fraction = self.optimization.lr_decay_fraction
        return round((0.1 if fraction is None else fraction) * self.total_steps)

    def check(self) -> None:
        """Check everything that is known before a process starts.

        Raises:
            UserError: naming the flag and the remedy.
        """
        positive = {
            "--seq-len": self.data.seq_len,
            "--global-batch-size": self.optimization.global_batch_size,
            "--micro-batch-size": self.optimization.micro_batch_size,
            "--steps": self.optimization.steps,
            "--tokens": 1 if self.optimization.tokens is None else self.optimization.tokens,
            "--lr": self.optimization.lr,
            "--save-every": self.run.save_every,
            "--keep": self.run.keep,
            "--eval-every": self.run.eval_every,
            "--eval-sequences": self.run.eval_sequences,
            "--log-every": self.run.log_every,
            "--max-nonfinite": self.optimization.max_nonfinite,
            "--tp": self.engine.tp,
            "--pp": self.engine.pp,
            "--cp": self.engine.cp,
            "--distributed-timeout-minutes": self.engine.distributed_timeout_minutes,
        }
        for flag, value in positive.items():
            if not value > 0:
                raise UserError(f"{flag} is {value}: it must be above zero")
        limit = self.evaluation.eval_limit
        if limit is not None and limit < 1:
            raise UserError(f"--eval-limit is {limit}: it must be above zero")
        for flag, value in (
            ("--max-restarts", self.run.max_restarts),
            ("--loader-workers", self.data.loader_workers),
            ("--batch-warmup-steps", self.optimization.batch_warmup_steps),
            ("--warmup-steps", self.warmup_steps),
        ):
            if value < 0:
                raise UserError(f"{flag} is {value}: it must not be below zero")
        if self.run.resume_from is not None and self.run.max_restarts:
            raise UserError(
                f"--resume-from {self.run.resume_from}: each of --max-restarts would begin there again: leave one out"
            )
        self.run.check_profile(self.total_steps)
        fraction = self.optimization.lr_decay_fraction
        if fraction is not None and not 0 < fraction <= 1:
            raise UserError(f"--lr-decay-fraction is {fraction}: it must be above zero and at most 1")
        if fraction is not None and self.optimization.lr_schedule != "wsd":
            raise UserError(
                f"--lr-decay-fraction is of --lr-schedule wsd, not of {self.optimization.lr_schedule}: "
                "leave it out (--lr-decay-fraction None, where the run to resume has one), or give --lr-schedule wsd"
            )
        self._check_plan()
        if not 0 <= self.optimization.z_loss < math.inf:
            raise UserError(f"--z-loss is {self.optimization.z_loss}: it must be a number from 0, such as 1e-4")
        lowest = self.optimization.lr_min_ratio
        if not 0 <= lowest <= 1:
            raise UserError(f"--lr-min-ratio is {lowest}: it must be from 0 to 1, a share of --lr")
        if lowest and self.optimization.lr_schedule == "constant":
            raise UserError(
                "--lr-min-ratio is what the learning rate falls to, and --lr-schedule constant does not fall: give "
                "--lr-min-ratio 0, or another schedule"
            )
        if self.engine.precision == "bf16" and self.engine.zero_stage == 0 and self.engine.deepspeed_config is None:
            raise UserError(
                "--precision bf16 needs --zero 1 or higher: ZeRO-0 keeps no fp32 master weights; "
                "use --zero 1 or --precision fp32"
            )
        # A resumed run has the fixed text's ids in its checkpoint.
        fixed_text = None if self.run.resume else self.data.fixed_text
        for path in (self.engine.deepspeed_config, fixed_text, *self.model.plugin):
            if path is not None and not path.is_file():
                raise UserError(f"no such file: {path}")
        if self.model.plugin:
            from deconattn.mixers.plugins import load_plugins

            load_plugins(self.model.plugin)
        check_probe(self)
        check_healing(self)
        model = model_config(self.model, 1, self.plan.longest)  # the tokenizer is not known yet
        for length in dict.fromkeys(stretch.seq_len for stretch in self.plan.stretches):
            self.engine.check(model, length)

    def _check_plan(self) -> None:
        optimization = self.optimization
        start, whole = optimization.batch_warmup_start, optimization.global_batch_size
        if (start is None) != (optimization.batch_warmup_steps == 0):
            raise UserError("--batch-warmup-start and --batch-warmup-steps go together: give both, or neither")
        if start is not None and (start < 1 or whole % start):
            raise UserError(
                f"--batch-warmup-start {start} does not divide --global-batch-size {whole}, which grows by it: "
                "give one that does"
            )
        last = self.plan.stretches[-1]
        if self.plan.phases and last.first >= self.total_steps:
            raise UserError(
                f"--phase {last.first} begins where the run has ended, at step {self.total_steps}: give more --steps, "
                "or take it away"
            )

    def accumulation_steps(self, data_parallel_size: int) -> int:
        """Return the gradient accumulation steps: micro-batches that a rank computes in one optimiser step.

        Raises:
            UserError: the global batch does not divide.
        """
        for stretch in self.plan.stretches:
            self._check_batch(stretch, data_parallel_size)
        return self.optimization.global_batch_size // (self.optimization.micro_batch_size * data_parallel_size)

    def _check_batch(self, stretch: Stretch, data_parallel_size: int) -> None:
        micro, whole = stretch.micro, stretch.batch
        if whole % (micro * data_parallel_size):
            if stretch.batch != self.optimization.global_batch_size or stretch.phase:
                name = f"--phase {stretch.first}" if stretch.phase else "--batch-warmup-start"
                raise UserError(
                    f"{name}: {whole} sequences a step are not a multiple of {micro} in a micro-batch x "
                    f"{data_parallel_size} ranks: give a multiple of {micro * data_parallel_size}, or a smaller "
                    "micro-batch"
                )
            possible = [m for m in range(1, micro + 1) if whole % (m * data_parallel_size) == 0]
            remedy = (
                f"use --micro-batch-size {possible[-1]}"
                if possible
                else f"use a --global-batch-size that is a multiple of {data_parallel_size}"
            )
            raise UserError(
                f"--global-batch-size {whole} is not a multiple of --micro-batch-size {micro} x "
                f"{data_parallel_size} ranks: {remedy}"
            )


def model_config(flags: ModelFlags, tokenizer_vocab_size: int, max_position_embeddings: int) -> ModelConfig:
    """Return the configuration of the model that the flags describe; plugins must have been loaded.

    Raises:
        UserError: unknown variant or pattern, impossible dimensions, a vocabulary smaller than the tokenizer's.
    """
    from deconattn.mixers import known_names

    vocab_size = flags.vocab_size or math.ceil(tokenizer_vocab_size / VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
    if flags.vocab_size and flags.vocab_size < tokenizer_vocab_size:
        raise UserError(
            f"--vocab-size {flags.vocab_size} is less than the tokenizer's {tokenizer_vocab_size}: "
            "raise it, or leave it out"
        )
    if not flags.head_dim and flags.hidden_size % max(1, flags.num_attention_heads):
        raise UserError(
            f"--hidden-size {flags.hidden_size} is not a multiple of --num-attention-heads "
            f"{flags.num_attention_heads}: change one, or give --head-dim"
        )
    head_dim = flags.head_dim or flags.hidden_size // max(1, flags.num_attention_heads)
    config = ModelConfig(
        vocab_size=vocab_size,
        hidden_size=flags.hidden_size,
        intermediate_size=flags.intermediate_size,
        num_hidden_layers=flags.num_hidden_layers,
        num_attention_heads=flags.num_attention_heads,
        num_key_value_heads=flags.num_key_value_heads or flags.num_attention_heads,
        head_dim=head_dim,
        max_position_embeddings=max_position_embeddings,
        layer_variants=layer_variants(flags.pattern, flags.variant, flags.num_hidden_layers, known_names()),
        attention_bias=flags.attention_bias,
        qk_norm=flags.qk_norm,
        tie_word_embeddings=flags.tie_embeddings,
        rms_norm_eps=flags.rms_norm_eps,
        rope_theta=ntk_theta(flags.rope_scaling, flags.rope_theta, head_dim),
        rope_scaling=parse_rope_scaling(flags.rope_scaling, max_position_embeddings),
        initializer_range=flags.initializer_range,
    )
    for variant in dict.fromkeys(config.layer_variants):
        check_heads(variant, config.num_attention_heads, config.num_key_value_heads)
    return replace(config, layer_variants=tuple(map(simplest, config.layer_variants)))
