"""Groups of flags: one dataclass a group, the single source of flags, of help texts and of `config.json`.

The defaults depend on `--size`: :mod:`deconattn.config.presets` gives them, and :mod:`deconattn.config.command_line`
reads the size first, so that every default in `--help` is a real value.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import UseAppendAction

from deconattn.errors import UserError
from deconattn.layers.config import ModelConfig

LrSchedule = Literal["cosine", "linear", "constant", "wsd"]
Recompute = Literal["none", "mixer", "mlp", "layer"]
Optimizer = Literal["adamw", "muon"]


@dataclass(frozen=True)
class ModelFlags:
    """The model."""

    size: str = "tiny"
    """Preset of dimensions and training defaults: tiny, 70m, 160m, 500m, 1.7b, 7b, 70b."""
    variant: str = "standard"
    """Variant of the layers that are not standard: standard, mlp, approximate, nonapproximate, rndemb, fixedseq,
    staticemb; one of the field's (docs/zoo.md), such as gated-deltanet; or a plugin's; or several by heads, such as
    standard[0-5]+nonapproximate[6-8]."""
    pattern: str = "uniform"
    """Which layers are standard: uniform, even, odd, top, middle, bottom, 25%, first, last, bilateral; S:V
    (1:3 is one standard layer for three variant layers); or a list such as 3*fixedseq,standard, whose layers may be
    several mixers by heads."""
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
    rope_scaling: str = "none"
    """Longer rotary wavelengths for longer sequences: none, linear:FACTOR, ntk:FACTOR, yarn:FACTOR or llama3:FACTOR,
    with settings such as yarn:8,original=2048 (docs/convert.md)."""
    rms_norm_eps: float = 1e-6
    """Epsilon added to the mean square in RMSNorm."""
    initializer_range: float = 0.02
    """Standard deviation of the initial weights."""


@dataclass(frozen=True)
class DataFlags:
    """The data."""

    data: tuple[str, ...] = ()
    """Packed corpora, each DIR or DIR:WEIGHT (the command pack makes them); none is the bundled demo corpus. Or
    probe:TASK, a synthetic task such as probe:mqar?pairs=16 (docs/probes.md)."""
    seq_len: int = 0
    """Tokens in a sequence; also the length of the fixed stream. With --data probe:TASK it is the task's."""
    doc_mask: bool = False
    """Keep mixing, positions and loss within documents."""
    fixed_text: Path | None = None
    """Text of fixedseq's stream; by default the first tokens of the first corpus."""
    phase: UseAppendAction[tuple[tuple[str, ...], ...]] = ()
    """STEP KEY=VALUE ...: from that step on other data=, seq_len=, global_batch_size=, micro_batch_size= or lr=
    (docs/training.md); what is not given stays. Repeatable, as is data=; STEP alone takes a phase away."""
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
    batch_warmup_start: int | None = None
    """Sequences in the first optimiser step, by which the global batch then grows; by default it does not."""
    batch_warmup_steps: int = 0
    """Steps until the global batch has grown to --global-batch-size."""
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
    """Learning rate after the warm-up: half a cosine to the lowest one; a line to it; constant; or wsd, constant and
    then a line to it."""
    lr_decay_fraction: float | None = None
    """Share of the run in which wsd falls; by default 0.1."""
    lr_min_ratio: float = 0.0
    """The learning rate falls to this share of --lr."""
    optimizer: Optimizer = "adamw"
    """AdamW for all; or Muon for the matrices of the hidden layers, scaled so that --lr and --weight-decay are AdamW's,
    and AdamW for the rest."""
    weight_decay: float = 0.1
    """Weight decay of matrices; norms and biases have none."""
    adam_beta1: float = 0.9
    """AdamW's first decay."""
    adam_beta2: float = 0.9999
    """AdamW's second decay."""
    adam_eps: float = 1e-8
    """AdamW's epsilon."""
    z_loss: float = 0.0
    """Coefficient of the z-loss, the mean squared logarithm of softmax's normaliser (PaLM has 1e-4); 0 has none."""
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
    zero_hpz: int = 0
    """With --zero 3: so many neighbouring data-parallel ranks, those of a machine, keep a second copy of the weights
    between them, so that only a step's first gathering leaves the machine (ZeRO++'s hpZ, akin to HSDP); 0 is none."""
    zero_quantized_weights: bool = False
    """With --zero 3, on GPUs: gather weights in 8 bits (ZeRO++'s qwZ), which changes the losses."""
    deepspeed_config: Path | None = None
    """DeepSpeed configuration in place of ds_configs/zeroN.json; batch sizes and precision stay ours."""
    tp: int = 1
    """Tensor-parallel ranks: each layer is shared out by heads, feed-forward width and vocabulary."""
    pp: int = 1
    """Pipeline stages: the layers are shared out in order, balanced by what each costs; ZeRO 0 or 1 only."""
    cp: int = 1
    """Context-parallel ranks: each sequence is shared out among them, and layers exchange what their mixers need of
    the others' tokens, mostly less than attention does."""
    sequence_parallel: bool = False
    """Share norms and residual stream out along the sequence over the tensor-parallel ranks."""
    recompute: Recompute = "none"
    """Recompute in the backward pass, instead of keeping it: nothing; of each layer the inside of its mixer, or of its
    feed-forward block; or the whole layer (least memory, a third more time)."""
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
        replica = self.tp * self.pp * self.cp
        if world_size % replica:
            least = math.ceil(world_size / replica) * replica
            context = f" x --cp {self.cp}" if self.cp > 1 else ""
            raise UserError(
                f"{world_size} ranks are not a multiple of --tp {self.tp} x --pp {self.pp}{context} = {replica}: "
                f"start {least} ranks, or choose another --tp or --pp{' or --cp' if context else ''}"
            )
        size = world_size // (self.tp * self.pp)  # ZeRO's ranks, which share weights, not sequences
        if self.zero_hpz and (size % self.zero_hpz or self.zero_hpz == size):
            divisors = [str(number) for number in range(2, size) if size % number == 0]
            remedy = f"use one of {', '.join(divisors)}, or 0" if divisors else "use --zero-hpz 0"
            raise UserError(
                f"--zero-hpz {self.zero_hpz} is to divide the {size} data-parallel ranks into several groups: {remedy}"
            )
        return size // self.cp

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
            mixer_class(variant).check_parts(model, self.tp)
        if self.pp > model.num_hidden_layers:
            raise UserError(f"--pp {self.pp} is more than the {model.num_hidden_layers} layers: use a smaller one")
        if self.pp > 1 and self.zero_stage > 1:
            raise UserError(
                f"--zero {self.zero_stage} does not go with --pp {self.pp}: DeepSpeed's pipeline needs whole gradients "
                "and weights on a stage; use --zero 1, or --pp 1"
            )
        if self.zero_hpz < 0 or self.zero_hpz == 1:
            raise UserError(f"--zero-hpz is {self.zero_hpz}: it must be 2 or more, or 0 for none")
        if self.sequence_parallel and self.tp == 1:
            raise UserError("--sequence-parallel shares sequences out among tensor-parallel ranks: give --tp 2 or more")
        parts = self.cp * (self.tp if self.sequence_parallel else 1)
        if length % parts:
            flag = f"--cp {self.cp}" if self.cp > 1 else ""
            if self.sequence_parallel:
                flag = f"--sequence-parallel: {flag}{' x ' if flag else ''}--tp {self.tp}"
            raise UserError(
                f"{flag} does not divide --seq-len {length}: use --seq-len {max(1, length // parts) * parts}"
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
    save_mode: Literal["async", "sync"] = "async"
    """Writing of checkpoints: async copies a rank's part to CPU memory and writes it while training goes on; sync
    waits for the disk, and needs no copy."""
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
    profile: str | None = None
    """Steps to profile, FIRST:LAST: a trace and, on GPUs, a history of memory go to the folder profile of the run."""
    profile_ranks: tuple[int, ...] = (0,)
    """Ranks that --profile is of."""
    max_restarts: int = 0
    """Start again from the newest good checkpoint when a rank dies, at most so often. Only with our own launcher."""
    wandb_project: str | None = None
    """Weights & Biases project; offline where there is no key."""
    tensorboard: bool = False
    """Write what metrics.jsonl holds for TensorBoard too, into the folder tensorboard of the run."""

    @property
    def profiled_steps(self) -> range:
        """Steps of `--profile`, counted from 1 as in `metrics.jsonl`; empty where there are none.

        Raises:
            UserError: not two numbers, or in the wrong order.
        """
        if self.profile is None:
            return range(0)
        first, colon, last = self.profile.partition(":")
        numbers = first.isascii() and first.isdigit() and last.isascii() and last.isdigit()
        if not (colon and numbers and 1 <= int(first) <= int(last)):
            raise UserError(
                f"--profile {self.profile}: give the first and the last step, counted from 1, such as --profile 10:12"
            )
        return range(int(first), int(last) + 1)

    def check_profile(self, total_steps: int, world_size: int | None = None) -> None:
        """Check `--profile` against a run.

        Args:
            world_size: number of ranks, where it is known.

        Raises:
            UserError: steps after the run's last one, or ranks that there are not.
        """
        steps = self.profiled_steps
        if not steps:
            if self.profile_ranks != (0,):
                raise UserError("--profile-ranks is of --profile: give --profile FIRST:LAST, or leave it out")
            return
        if steps[-1] > total_steps:
            raise UserError(
                f"--profile {self.profile}: the run has {total_steps} steps: end at {total_steps} or before"
            )
        if not self.profile_ranks:
            raise UserError(f"--profile {self.profile}: --profile-ranks names no rank: give one, such as 0")
        for rank in self.profile_ranks:
            if rank < 0 or (world_size is not None and rank >= world_size):
                there = "" if world_size is None else f": there are 0 to {world_size - 1}"
                raise UserError(f"--profile-ranks {rank}: no such rank{there}")


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
class HealingFlags:
    """A start from a trained model, and what is learnt from one (docs/healing.md)."""

    init_from: Path | None = None
    """Begin with the weights of a run, a checkpoint or a Hugging Face folder: dimensions, and without --variant and
    --pattern the layers, are its by default; what it does not have begins as by --seed."""
    freeze: tuple[str, ...] = ()
    """Parameters that keep their values: patterns of names such as model.layers.*.mlp.*, or shared, all that
    --init-from gave but mixers of another variant; PATTERN@STEP lets them go after so many steps."""
    teacher: Path | None = None
    """Run, checkpoint or Hugging Face folder to learn from by --distill."""
    distill: str | None = None
    """Objectives in their order, each NAME:STEPS, or NAME:TOKENSt, the last without a length: layer (each mixer's
    output is to be the teacher's, of the teacher's input), logits (KL to the teacher's predictions), lm (the usual
    loss), such as layer:200,logits:800,lm."""
    distill_temperature: float = 1.0
    """Temperature at which --distill logits compares predictions."""
