"""Flags of a run: one dataclass a group, the single source of flags, of help texts and of `config.json`.

The defaults depend on `--size`: :mod:`deconattn.config.presets` gives them, and :mod:`deconattn.config.command_line`
reads the size first, so that every default in `--help` is a real value. The variants, and PyTorch with them, are
imported where flags are checked: `--help` does not wait for them.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from deconattn.config.pattern import layer_variants
from deconattn.errors import UserError
from deconattn.layers.config import ModelConfig

LrSchedule = Literal["cosine", "linear", "constant", "wsd"]
VOCABULARY_MULTIPLE = 128
"""A vocabulary is rounded up to this multiple: head and embedding then have sizes that hardware likes."""


@dataclass(frozen=True)
class ModelFlags:
    """The model."""

    size: str = "tiny"
    """Preset of dimensions and training defaults: tiny, 70m, 160m, 500m, 1.7b."""
    variant: str = "standard"
    """Variant of the layers that are not standard: standard, mlp, approximate, nonapproximate, rndemb, fixedseq,
    staticemb, or a plugin's."""
    pattern: str = "uniform"
    """Which layers are standard: uniform, even, odd, top, middle, bottom, 25%, first, last, bilateral; S:V
    (1:3 is one standard layer for three variant layers); or a list such as 3*fixedseq,standard."""
    plugin: tuple[Path, ...] = ()
    """Python files that register variants of your own."""
    hidden_size: int = 0
    """Width of the residual stream."""
    intermediate_size: int = 0
    """Width of the feed-forward block."""
    num_hidden_layers: int = 0
    """Depth."""
    num_attention_heads: int = 0
    """Query heads."""
    num_key_value_heads: int = 0
    """Key/value heads; fewer than the query heads is grouped-query attention, 0 is as many."""
    head_dim: int = 0
    """Width of a head; 0 is hidden_size / num_attention_heads."""
    vocab_size: int = 0
    """Rows of the embedding; 0 is the tokenizer's, rounded up to a multiple of 128."""
    attention_bias: bool = True
    """Bias on Q, K and V (Qwen2)."""
    qk_norm: bool = False
    """RMSNorm on each head's query and key (Qwen3)."""
    tie_embeddings: bool = False
    """Use the embedding as the head."""
    rope_theta: float = 1_000_000.0
    """Base of the rotary embedding's wavelengths."""
    rms_norm_eps: float = 1e-6
    """Epsilon added to the mean square in RMSNorm."""
    initializer_range: float = 0.02
    """Standard deviation of the initial weights."""


@dataclass(frozen=True)
class DataFlags:
    """The data."""

    data: tuple[str, ...] = ()
    """Packed corpora, each DIR or DIR:WEIGHT (the command pack makes them); none is the bundled demo corpus."""
    seq_len: int = 0
    """Tokens in a sequence; also the length of the fixed stream."""
    doc_mask: bool = False
    """Keep mixing, positions and loss within documents."""
    fixed_text: Path | None = None
    """Text of fixedseq's stream; by default the first tokens of the first corpus."""
    packing: Literal["concat", "best-fit"] = "concat"
    """Packing of documents into sequences: concat cuts their concatenation; best-fit pads, and cuts no document that
    fits (docs/data.md). Validation is always concat."""
    loader_workers: int = 0
    """Processes of each rank that make its batches; 0 is a thread, enough for local files. The order is the same."""


@dataclass(frozen=True)
class OptimizationFlags:
    """The optimisation (defaults: table 9 of the paper)."""

    global_batch_size: int = 0
    """Sequences in an optimiser step, over all ranks."""
    micro_batch_size: int = 0
    """Sequences in one forward pass of one rank."""
    steps: int = 0
    """Optimiser steps."""
    tokens: int | None = None
    """Train on this many tokens, in place of --steps."""
    lr: float = 0.0
    """Peak learning rate."""
    warmup_steps: int | None = None
    """Steps of linear warm-up; by default 2000, at most a tenth of the run."""
    lr_schedule: LrSchedule = "cosine"
    """Learning rate after the warm-up: half a cosine to zero; a line to zero; constant; or wsd, constant and then a
    line to zero."""
    lr_decay_fraction: float | None = None
    """Share of the run in which wsd falls; by default 0.1."""
    weight_decay: float = 0.1
    """AdamW's weight decay of matrices; norms and biases have none."""
    adam_beta1: float = 0.9
    """AdamW's first decay."""
    adam_beta2: float = 0.9999
    """AdamW's second decay."""
    adam_eps: float = 1e-8
    """AdamW's epsilon."""
    clip_grad: float = 1.0
    """Largest gradient norm; 0 does not clip."""
    seed: int = 1234
    """Initial weights, data order, and whatever a variant draws."""
    max_nonfinite: int = 10
    """Stop after so many steps in a row whose loss or gradient is not finite (each is skipped)."""


@dataclass(frozen=True)
class EngineFlags:
    """The engine: precision, memory and parallelism."""

    precision: Literal["bf16", "fp32"] | None = None
    """Weights and activations; the optimiser's master weights are always fp32. By default bf16 where there are GPUs,
    else fp32."""
    zero: Literal[0, 1, 2, 3] | None = None
    """DeepSpeed ZeRO stage: what data-parallel ranks share out (1 optimiser, 2 and gradients, 3 and weights). By
    default 1 in bf16, which needs it, and 0 in fp32, where it is fastest."""
    deepspeed_config: Path | None = None
    """DeepSpeed configuration in place of ds_configs/zeroN.json; batch sizes and precision stay ours."""
    tp: int = 1
    """Tensor-parallel ranks: each layer is shared out by heads, feed-forward width and vocabulary."""
    pp: int = 1
    """Pipeline stages: the layers are shared out in order, balanced by what each costs; ZeRO 0 or 1 only."""
    sequence_parallel: bool = False
    """Share norms and residual stream out along the sequence over the tensor-parallel ranks."""
    activation_checkpointing: bool = False
    """Recompute each layer in the backward pass."""
    compile: bool = False
    """torch.compile each layer."""
    distributed_timeout_minutes: float = 10.0
    """A collective that waits longer than this for a rank ends the run."""

    @property
    def zero_stage(self) -> int:
        """ZeRO stage: `--zero`, or the precision's default."""
        if self.zero is not None:
            return self.zero
        return 1 if self.precision == "bf16" else 0

    def data_parallel_size(self, world_size: int) -> int:
        """Return the data-parallel size on `world_size` ranks.

        Raises:
            UserError: the ranks do not make whole replicas.
        """
        replica = self.tp * self.pp
        if world_size % replica:
            least = math.ceil(world_size / replica) * replica
            raise UserError(
                f"{world_size} ranks are not a multiple of --tp {self.tp} x --pp {self.pp} = {replica}: "
                f"start {least} ranks, or choose another --tp or --pp"
            )
        return world_size // replica

    def check(self, model: ModelConfig, length: int) -> None:
        """Check that the topology fits a model and a sequence length.

        Raises:
            UserError: what does not divide or does not go together, and the remedy.
        """
        from deconattn.mixers import mixer_class

        heads, key_value_heads = model.num_attention_heads, model.num_key_value_heads
        if heads % self.tp:
            divisors = ", ".join(str(number) for number in range(1, heads + 1) if heads % number == 0)
            raise UserError(f"--tp {self.tp} does not divide the {heads} attention heads: use one of {divisors}")
        if key_value_heads % self.tp and self.tp % key_value_heads:
            raise UserError(
                f"--tp {self.tp} neither divides the {key_value_heads} key/value heads nor is a multiple of them: "
                "choose another"
            )
        for name in ("intermediate_size", "vocab_size"):
            if getattr(model, name) < self.tp:
                raise UserError(f"--tp {self.tp} is more than the {name} of {getattr(model, name)}: use a smaller one")
        for variant in dict.fromkeys(model.layer_variants):
            if self.tp > 1 and mixer_class(variant).splits is None:
                raise UserError(
                    f"--tp {self.tp}: variant {variant!r} declares no splits for tensor parallelism; declare them "
                    "(deconattn/mixers/base.py) or use --tp 1"
                )
        if self.pp > model.num_hidden_layers:
            raise UserError(f"--pp {self.pp} is more than the {model.num_hidden_layers} layers: use a smaller one")
        if self.pp > 1 and self.zero_stage > 1:
            raise UserError(
                f"--zero {self.zero_stage} does not go with --pp {self.pp}: DeepSpeed's pipeline needs whole gradients "
                "and weights on a stage; use --zero 1, or --pp 1"
            )
        if self.sequence_parallel and self.tp == 1:
            raise UserError("--sequence-parallel shares sequences out among tensor-parallel ranks: give --tp 2 or more")
        if self.sequence_parallel and length % self.tp:
            raise UserError(
                f"--sequence-parallel: --tp {self.tp} does not divide --seq-len {length}: "
                f"use --seq-len {length // self.tp * self.tp}"
            )


@dataclass(frozen=True)
class RunFlags:
    """The run folder and what is told of it."""

    save: Path | None = None
    """Run folder: config.json, metrics.jsonl, checkpoints/step-N. By default a new one under runs/."""
    config: Path | None = None
    """YAML or JSON file of flags, by their names, or a run's config.json; flags of the command line come before its."""
    save_every: int = 0
    """Steps between checkpoints (one is always written at the end)."""
    keep: int = 3
    """Checkpoints kept, the newest ones."""
    keep_every: int = 0
    """Keep those of every so many steps for good, too; 0 keeps none."""
    resume: bool = False
    """Go on from the newest good checkpoint of --save; flags not given keep the run's values."""
    resume_from: str | None = None
    """Go on from this one of its checkpoints instead, such as step-300; newer ones are moved to set-aside-N."""
    trust_plugins: bool = False
    """With --resume: run the plugins that the run names, which are somebody's code, without being given them."""
    eval_every: int = 0
    """Steps between validations (one is always made at the end)."""
    eval_sequences: int = 0
    """Validation sequences, at most."""
    log_every: int = 1
    """Steps between rows of metrics.jsonl."""
    max_restarts: int = 0
    """Start again from the newest good checkpoint when a rank dies, at most so often. Only with our own launcher."""
    wandb_project: str | None = None
    """Weights & Biases project; offline where there is no key."""


@dataclass(frozen=True)
class EvaluationFlags:
    """Benchmarks at each checkpoint."""

    eval_tasks: str = ""
    """Comma-separated: arc_easy, boolq, copa, piqa, sciq, rte, hellaswag, wikitext, lambada_openai; rank 0 scores them
    while the others wait."""
    eval_datasets: Path | None = None
    """Folder with their documents (docs/evaluation.md); by default the hub's."""
    eval_limit: int | None = None
    """Score only this many documents of a task, from the first."""


@dataclass(frozen=True)
class TrainingFlags:
    """Train a language model whose layers mix tokens by any attention variant."""

    model: ModelFlags = field(default_factory=ModelFlags)
    data: DataFlags = field(default_factory=DataFlags)
    optimization: OptimizationFlags = field(default_factory=OptimizationFlags)
    engine: EngineFlags = field(default_factory=EngineFlags)
    run: RunFlags = field(default_factory=RunFlags)
    evaluation: EvaluationFlags = field(default_factory=EvaluationFlags)

    @property
    def total_steps(self) -> int:
        """Optimiser steps: `--steps`, or as many as `--tokens` takes."""
        tokens = self.optimization.tokens
        if tokens is None:
            return self.optimization.steps
        return math.ceil(tokens / (self.optimization.global_batch_size * self.data.seq_len))

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
            "--tokens": self.total_steps if self.optimization.tokens is None else self.optimization.tokens,
            "--lr": self.optimization.lr,
            "--save-every": self.run.save_every,
            "--keep": self.run.keep,
            "--eval-every": self.run.eval_every,
            "--eval-sequences": self.run.eval_sequences,
            "--log-every": self.run.log_every,
            "--max-nonfinite": self.optimization.max_nonfinite,
            "--tp": self.engine.tp,
            "--pp": self.engine.pp,
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
            ("--warmup-steps", self.warmup_steps),
        ):
            if value < 0:
                raise UserError(f"{flag} is {value}: it must not be below zero")
        if self.run.resume_from is not None and self.run.max_restarts:
            raise UserError(
                f"--resume-from {self.run.resume_from}: each of --max-restarts would begin there again: leave one out"
            )
        fraction = self.optimization.lr_decay_fraction
        if fraction is not None and not 0 < fraction <= 1:
            raise UserError(f"--lr-decay-fraction is {fraction}: it must be above zero and at most 1")
        if fraction is not None and self.optimization.lr_schedule != "wsd":
            raise UserError(
                f"--lr-decay-fraction is of --lr-schedule wsd, not of {self.optimization.lr_schedule}: "
                "leave it out (--lr-decay-fraction None, where the run to resume has one), or give --lr-schedule wsd"
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
        model = model_config(self.model, 1, self.data.seq_len)  # the tokenizer is not known yet
        self.engine.check(model, self.data.seq_len)

    def accumulation_steps(self, data_parallel_size: int) -> int:
        """Return the gradient accumulation steps: micro-batches that a rank computes in one optimiser step.

        Raises:
            UserError: the global batch does not divide.
        """
        micro, whole = self.optimization.micro_batch_size, self.optimization.global_batch_size
        if whole % (micro * data_parallel_size):
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
        return whole // (micro * data_parallel_size)


def model_config(flags: ModelFlags, tokenizer_vocab_size: int, max_position_embeddings: int) -> ModelConfig:
    """Return the configuration of the model that the flags describe; plugins must have been loaded.

    Raises:
        UserError: unknown variant or pattern, impossible dimensions, a vocabulary smaller than the tokenizer's.
    """
    from deconattn.mixers import variant_names

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
    return ModelConfig(
        vocab_size=vocab_size,
        hidden_size=flags.hidden_size,
        intermediate_size=flags.intermediate_size,
        num_hidden_layers=flags.num_hidden_layers,
        num_attention_heads=flags.num_attention_heads,
        num_key_value_heads=flags.num_key_value_heads or flags.num_attention_heads,
        head_dim=flags.head_dim or flags.hidden_size // max(1, flags.num_attention_heads),
        max_position_embeddings=max_position_embeddings,
        layer_variants=layer_variants(flags.pattern, flags.variant, flags.num_hidden_layers, variant_names()),
        attention_bias=flags.attention_bias,
        qk_norm=flags.qk_norm,
        tie_word_embeddings=flags.tie_embeddings,
        rms_norm_eps=flags.rms_norm_eps,
        rope_theta=flags.rope_theta,
        initializer_range=flags.initializer_range,
    )
