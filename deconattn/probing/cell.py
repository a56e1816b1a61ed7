"""Training and measuring of one small model: plain PyTorch, without an engine."""

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deconattn.model.causal_lm import CausalLM
from deconattn.model.init import initialize, seed_generators
from deconattn.ops.backend import preferring
from deconattn.probing.grid import Cell
from deconattn.probing.samples import Questions, Samples, samples_of

WEIGHT_DECAY = 0.1
BETAS = (0.9, 0.98)
CLIP = 1.0
WARM_UP = 0.1
"""Share of the steps in which the rate rises; then it falls to zero along half a cosine."""
CHECK_EVERY = 50
"""Steps between looks at whether all is solved, or lost."""
WHOLE_MAPS = 128
"""Samples of up to so many tokens are mixed by the formulas with their whole maps on a CPU: blocks loop over rows and
heads there, and took three times as long for nonapproximate, and seven for approximate, at 32 tokens."""
SOLVED = 0.995
"""Accuracy at which a difficulty counts as solved, and training ends once all are."""


class Stopped(Exception):
    """The program is to end before the model has been trained."""


class Diverged(Exception):
    """The loss is no number any more."""


@dataclass(frozen=True)
class Measure:
    """What a model does at one difficulty, see :class:`~deconattn.probing.results.Row`."""

    accuracy: float
    loss: float
    asked: int


@dataclass(frozen=True)
class Trained:
    """What came of a model: a measure a difficulty, in the ladder's order."""

    parameters: int
    steps: int
    tokens: int
    solved_at: int | None
    seconds: float
    measures: tuple[Measure, ...]


def train_cell(
    cell: Cell, steps: int, batch_size: int, device: torch.device, stop: Callable[[], bool] = lambda: False
) -> Trained:
    """Train a model and measure it on held-out samples; equal on any machine of a kind.

    Args:
        steps: at most.
        stop: asked before each step.

    Raises:
        Stopped: `stop` said so.
        Diverged: the loss is not finite.
    """
    small = device.type == "cpu" and cell.group.ladder.longest <= WHOLE_MAPS
    with preferring("reference") if small else nullcontext():
        return _train(cell, steps, batch_size, device, stop)


def _train(cell: Cell, steps: int, batch_size: int, device: torch.device, stop: Callable[[], bool]) -> Trained:
    start = time.perf_counter()
    ladder = cell.group.ladder
    samples = samples_of(ladder, cell.seed, batch_size)
    seed_generators(cell.seed, "start")
    config = cell.group.model_config()
    model = CausalLM(config)
    initialize(model, cell.seed, samples.fixed_ids(config.max_position_embeddings))
    model.to(device)
    optimizer = _optimizer(model, cell.lr, device)
    tokens, solved_at, taken = 0, None, 0
    total = torch.zeros((), device=device)
    while taken < steps and solved_at is None:
        if stop():
            raise Stopped
        for group in optimizer.param_groups:
            group["lr"] = cell.lr * rate_at(taken, steps)
        questions = samples.step(taken).to(device)
        loss = _loss(model, questions)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP, foreach=True)
        optimizer.step()
        optimizer.zero_grad()
        total += loss.detach()
        tokens += questions.tokens.numel()
        taken += 1
        if taken % CHECK_EVERY == 0 or taken == steps:
            if not math.isfinite(total.item()):
                raise Diverged(f"the loss is not finite by step {taken}")
            if taken < steps and _is_solved(model, samples, device):
                solved_at = taken
    measures = tuple(_measure(model, samples.held_out(task), device) for task in ladder.tasks)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Trained(parameters, taken, tokens, solved_at, time.perf_counter() - start, measures)


def rate_at(step: int, steps: int) -> float:
    """Return the share of the peak rate at a step, from 0."""
    rising = max(1, round(WARM_UP * steps))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


def _optimizer(model: CausalLM, lr: float, device: torch.device) -> torch.optim.Optimizer:
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, betas=BETAS, fused=device.type in ("cpu", "cuda"))


def _hidden(model: CausalLM, questions: Questions) -> Tensor:
    """Return the hidden states of the asked positions alone, [n, d]: no others have logits."""
    device = questions.tokens.device.type
    with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
        return model.model(questions.tokens).flatten(0, 1)[questions.asked].float()


def _loss(model: CausalLM, questions: Questions) -> Tensor:
    total: Tensor = model.lm_head.loss(_hidden(model, questions), questions.answers).total
    return total / len(questions.answers)


@torch.no_grad()
def _right(model: CausalLM, questions: Questions) -> tuple[Tensor, Tensor]:
    """Return the number of right answers, and the sum of the cross-entropy."""
    logits = model.lm_head(_hidden(model, questions))
    losses = nn.functional.cross_entropy(logits, questions.answers, reduction="sum")
    return (logits.argmax(-1) == questions.answers).sum(), losses


def _measure(model: CausalLM, batches: list[Questions], device: torch.device) -> Measure:
    found = [_right(model, questions.to(device)) for questions in batches]
    asked = sum(len(questions.answers) for questions in batches)
    right, loss = (float(sum(part.item() for part in parts)) for parts in zip(*found, strict=True))
    if not math.isfinite(loss):
        raise Diverged("the loss is not finite on held-out samples")
    return Measure(right / asked, loss / asked, asked)


def _is_solved(model: CausalLM, samples: Samples, device: torch.device) -> bool:
    """Tell whether all difficulties are solved, the hardest asked first."""
    return all(
        _measure(model, [samples.check(task)], device).accuracy > SOLVED for task in reversed(samples.ladder.tasks)
    )
