"""One contestant of `cpu.py` in a process of its own: builds a model, then trains a step whenever told to.

    python -m benchmarks.training.cpu_contestant SPEC_JSON DESCRIPTOR

Orders come a line at a time on standard input: `step` trains on the next batch, end of file ends. Each is
answered by a line of JSON on the file descriptor named: seconds (of the wall clock and of this process's CPU time),
loss, and the process's peak memory. Standard output is left to what libraries print.
"""

import dataclasses
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.training.contestants import qwen2_config
from deconattn.config.command_line import parse_training_flags
from deconattn.config.flags import TrainingFlags, model_config
from deconattn.data import Batch
from deconattn.model.causal_lm import CausalLM
from deconattn.model.init import initialize
from deconattn.parallel.process_group import start_distributed

PEER = "Qwen2 (transformers)"
LEARNING_RATE = 4e-4
Step = Callable[[Tensor], float]


@dataclasses.dataclass(frozen=True)
class Spec:
    """What is to be trained, the same for every contestant but for its name."""

    name: str
    """A variant, or :data:`PEER`."""
    size: str = "70m"
    seq_len: int = 512
    batch_size: int = 4
    precision: str = "fp32"
    vocab_size: int = 50304
    layers: int = 0
    """Depth; 0 is the size's own."""
    seed: int = 1234

    def flags(self) -> TrainingFlags:
        """As from a command line; the peer gets the dimensions of `standard`."""
        arguments = ["--size", self.size, "--variant", "standard" if self.name == PEER else self.name]
        arguments += ["--seq-len", str(self.seq_len), "--precision", self.precision]
        arguments += ["--micro-batch-size", str(self.batch_size), "--global-batch-size", str(self.batch_size)]
        arguments += ["--vocab-size", str(self.vocab_size), "--lr", str(LEARNING_RATE)]
        if self.layers:
            arguments += ["--num-hidden-layers", str(self.layers)]
        return parse_training_flags(arguments)


def main() -> None:
    """Build, say so, then obey."""
    answers = os.fdopen(int(sys.argv[2]), "w")
    spec = Spec(**json.loads(sys.argv[1]))
    step = build(spec)
    generator = torch.Generator().manual_seed(spec.seed)
    print(json.dumps({"ready": spec.name}), file=answers, flush=True)
    for order in sys.stdin:
        if order.strip() != "step":
            raise ValueError(f"unknown order {order!r}")
        tokens = torch.randint(spec.vocab_size, (spec.batch_size, spec.seq_len + 1), generator=generator)
        print(json.dumps(timed(step, tokens)), file=answers, flush=True)


def timed(step: Step, tokens: Tensor) -> dict[str, float]:
    """Train a step; what it took."""
    wall, cpu = time.perf_counter(), time.process_time()
    loss = step(tokens)
    return {
        "seconds": time.perf_counter() - wall,
        "cpu_seconds": time.process_time() - cpu,
        "loss": loss,
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def build(spec: Spec) -> Step:
    """A function from tokens [B, L + 1] to the loss of an optimiser step on them."""
    return _peer(spec) if spec.name == PEER else _ours(spec)


def _initialized(spec: Spec) -> CausalLM:
    model = CausalLM(model_config(spec.flags().model, spec.vocab_size, spec.seq_len))
    initialize(model, spec.seed, torch.arange(spec.seq_len) % spec.vocab_size)
    return model


def _ours(spec: Spec) -> Step:
    from deconattn.train.engine import Engine

    start_distributed()
    engine = Engine(_initialized(spec), spec.flags())

    def step(tokens: Tensor) -> float:
        return engine.train_step([Batch(tokens[:, :-1], tokens[:, 1:])], LEARNING_RATE).loss

    return step


def _peer(spec: Spec) -> Step:
    """The loop that one writes around transformers: fp32 weights, autocast where the precision is bf16."""
    from transformers import Qwen2ForCausalLM

    flags = spec.flags()
    ours, optimization = model_config(flags.model, spec.vocab_size, spec.seq_len), flags.optimization
    model = Qwen2ForCausalLM(qwen2_config(ours))
    model.load_state_dict(_initialized(spec).state_dict())  # the same names: its losses are `standard`'s
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": optimization.weight_decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ],
        lr=LEARNING_RATE,
        betas=(optimization.adam_beta1, optimization.adam_beta2),
        eps=optimization.adam_eps,
        fused=True,
    )

    def step(tokens: Tensor) -> float:
        inputs, labels = tokens[:, :-1], tokens[:, 1:].contiguous()
        with torch.autocast("cpu", torch.bfloat16, enabled=spec.precision == "bf16"):
            # With labels alone it would shift them itself and learn from one token less than we do.
            loss: Any = model(input_ids=inputs, labels=inputs, shift_labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, optimization.clip_grad)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step


if __name__ == "__main__":
    main()
