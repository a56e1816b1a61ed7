"""Who trains in `step.py`: our engine and its peers at equal dimensions, each built to a step function.

The recipes are those that the libraries' users have:

- deconattn: the engine of `launch.sh`: DeepSpeed, bf16 weights, ZeRO 1 with fp32 master weights, clipping.
- transformers: `Qwen2ForCausalLM` with SDPA in a plain loop as its Trainer makes it with `bf16=True`: fp32 weights
  under bf16 autocast, fused AdamW. With `bf16_weights` it has no fp32 master weights: less precise than everything
  else here, and the fastest that the library gives.
- torchtitan: see :mod:`benchmarks.training.torchtitan_peer`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from deconattn.config.command_line import parse_training_flags
from deconattn.config.flags import TrainingFlags, model_config
from deconattn.data import Batch
from deconattn.layers.config import ModelConfig
from deconattn.model.causal_lm import CausalLM
from deconattn.model.init import initialize

LEARNING_RATE = 4e-4
Step = Callable[[Batch], tuple[Tensor | float, bool]]
"""An optimiser step on a batch in host memory: the loss (nats, not waited for), and whether the step was skipped."""
Place = Callable[[torch.device], Step]
"""Puts a contestant on its device, ready for its first step; the process group must exist."""


@dataclass(frozen=True)
class Contestant:
    """A library and what it trains; transformers and torchtitan have `standard` only."""

    library: Literal["deconattn", "transformers", "torchtitan"] = "deconattn"
    variant: str = "standard"
    pattern: str = "uniform"
    compile: bool = True
    """torch.compile every block, as our `--compile` and torchtitan do."""
    whole_model: bool = False
    """transformers: compile the model with its loss as one, as its Trainer's `torch_compile` does."""
    bf16_weights: bool = False
    """transformers: the weights themselves in bf16, and so AdamW's moments."""
    backend: str = ""
    """deconattn: force this backend of the mixing operations; empty leaves the choice to `deconattn.ops.backend`."""

    @property
    def name(self) -> str:
        """As tables and figures show it."""
        if self.library == "deconattn":
            what = self.variant if self.pattern == "uniform" else f"{self.variant} {self.pattern}"
        else:
            what = self.library + (", bf16 weights" if self.bf16_weights else "")
            what += ", compiled as a whole" if self.whole_model else ""
        what += f", {self.backend} backend" if self.backend else ""
        return what if self.compile else f"{what}, eager"


@dataclass(frozen=True)
class Workload:
    """What every contestant of a size is given."""

    size: str
    seq_len: int
    micro_batch_size: int
    """Sequences in an optimiser step, which is one micro-batch."""
    vocab_size: int
    layers: int
    """Depth; 0 is the size's own."""
    warmup_steps: int
    """Before anything is timed; compilation falls into the first."""
    samples: int
    steps_a_sample: int
    """Steps between two synchronisations: one time is taken for them together."""
    torchtitan: str = ""
    """Its checkout."""
    seed: int = 1234

    @property
    def tokens(self) -> int:
        """Of an optimiser step."""
        return self.micro_batch_size * self.seq_len

    def flags(self, contestant: Contestant) -> TrainingFlags:
        """Ours, as from a command line."""
        batch = str(self.micro_batch_size)
        arguments = [
            "--size", self.size, "--variant", contestant.variant, "--pattern", contestant.pattern,
            "--seq-len", str(self.seq_len), "--vocab-size", str(self.vocab_size), "--precision", "bf16",
            "--micro-batch-size", batch, "--global-batch-size", batch, "--lr", str(LEARNING_RATE),
        ]  # fmt: skip
        arguments += ["--num-hidden-layers", str(self.layers)] if self.layers else []
        arguments += ["--compile"] if contestant.compile else []
        return parse_training_flags(arguments)

    def model_config(self, contestant: Contestant) -> ModelConfig:
        return model_config(self.flags(contestant).model, self.vocab_size, self.seq_len)


def prepare(contestant: Contestant, workload: Workload) -> Place:
    """Import what the contestant needs and make its model in host memory, while another one has the device."""
    if contestant.library == "transformers":
        return _transformers(contestant, workload)
    if contestant.library == "torchtitan":
        from benchmarks.training.torchtitan_peer import prepare_torchtitan

        return prepare_torchtitan(contestant, workload)
    return _deconattn(contestant, workload)


def adamw(model: nn.Module, flags: TrainingFlags) -> torch.optim.AdamW:
    """The same optimiser for every peer: fused, weight decay on matrices alone, our engine's hyperparameters."""
    parameters, optimization = list(model.parameters()), flags.optimization
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": optimization.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    betas = (optimization.adam_beta1, optimization.adam_beta2)
    return torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=betas, eps=optimization.adam_eps, fused=True)


def _initialized(contestant: Contestant, workload: Workload) -> CausalLM:
    model = CausalLM(workload.model_config(contestant))
    initialize(model, workload.seed, torch.arange(workload.seq_len) % workload.vocab_size)
    return model


def _deconattn(contestant: Contestant, workload: Workload) -> Place:
    from deconattn.train.engine import Engine

    model = _initialized(contestant, workload)

    def place(device: torch.device) -> Step:  # the engine knows its device
        engine = Engine(model, workload.flags(contestant))

        def step(batch: Batch) -> tuple[float, bool]:
            result = engine.train_step([batch], LEARNING_RATE)
            return result.loss, result.skipped

        return step

    return place


def _transformers(contestant: Contestant, workload: Workload) -> Place:
    from transformers import Qwen2ForCausalLM

    model = Qwen2ForCausalLM(qwen2_config(workload.model_config(contestant)))
    # The same names and the same weights: its losses are those of `standard`.
    model.load_state_dict(_initialized(contestant, workload).state_dict())
    flags = workload.flags(contestant)

    def place(device: torch.device) -> Step:
        model.to(device, torch.bfloat16 if contestant.bf16_weights else torch.float32)
        if contestant.compile:
            for part in [model] if contestant.whole_model else model.model.layers:
                part.compile()
        optimizer = adamw(model, flags)

        def step(batch: Batch) -> tuple[Tensor, bool]:
            batch = batch.to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=not contestant.bf16_weights):
                # With labels alone it would shift them itself and learn from one token less than we do.
                loss: Tensor = model(input_ids=batch.input_ids, labels=batch.labels, shift_labels=batch.labels).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), flags.optimization.clip_grad)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            return loss.detach(), False

        return step

    return place


def qwen2_config(ours: ModelConfig) -> Any:
    """transformers' configuration of the same model."""
    from transformers import Qwen2Config

    names = (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings",
    )  # fmt: skip
    return Qwen2Config(
        **{name: getattr(ours, name) for name in names},
        rope_parameters={"rope_type": "default", "rope_theta": ours.rope_theta},
        use_cache=False,
        attn_implementation="sdpa",
    )
