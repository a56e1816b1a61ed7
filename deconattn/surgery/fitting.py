"""A replacement's own parameters, fitted to what the layer's mixer gives for the layer's true input.

Its output projection is solved for by least squares, which costs a pass over the data; Adam trains all parameters from
there, and the projection is solved for again. The regression that LoLCATs (arXiv 2410.10254) and MOHAWK (arXiv
2408.10189) begin with, of one layer, on few tokens.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deconattn.mixers import Mixer
from deconattn.surgery.activations import Activations

RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Weights of staying where the projection was, as parts of the mean square of its inputs. Tokens of a sequence are
alike, averages of its prefixes most of all: the one counts that is best for sequences that it was not solved on."""
CHECKED = 8
"""The last of so many sequences choose, and are not trained on."""
WARMUP = 0.1
"""Part of the steps in which the learning rate rises."""
CLIP = 1.0
"""Largest norm of a step's gradient."""


@dataclass(frozen=True)
class FitSettings:
    """Steps of Adam, sequences of each, and the peak learning rate."""

    steps: int
    batch: int
    lr: float
    seed: int


@dataclass(frozen=True)
class Targets:
    """What a replacement is fitted to.

    Attributes:
        outputs: [N, L, d], what the layer's mixer gives.
        weights: fp32 [N, L, 1], of each token's squared error: one over the mean square of the residual stream after
            the mixer, scaled so that `outputs` itself, weighted, has a mean square of 1.
    """

    outputs: Tensor
    weights: Tensor

    @classmethod
    def of(cls, activations: Activations) -> "Targets":
        """Run the layer's own mixer."""
        outputs = activations.outputs()
        sizes = torch.stack([_mean_squares(*both) for both in zip(activations.hidden, outputs, strict=True)])
        weights = 1 / sizes.clamp_min(torch.finfo(sizes.dtype).tiny)
        total = float((torch.stack([one.square().mean(-1, keepdim=True) for one in outputs]) * weights).double().sum())
        return cls(outputs, weights * (weights.numel() / total if total else 1.0))

    def error(self, given: Tensor, rows: slice | Tensor) -> Tensor:
        """Return the weighted mean squared error of [B, L, d], a scalar: 1 for an output of zeros."""
        return ((given - self.outputs[rows]).square() * self.weights[rows]).mean()


def fit(
    mixer: Mixer,
    activations: Activations,
    targets: Targets,
    settings: FitSettings,
    check: Callable[[], object] = lambda: None,
) -> None:
    """Fit all parameters of `mixer` in place.

    Args:
        activations: before the layer.
        check: called before each batch; what it raises leaves the mixer half fitted.
    """
    projection = output_projection(mixer, activations)
    if projection is not None:
        solve(mixer, projection, activations, targets, check)
    if settings.steps:
        _train(mixer, activations, targets, settings, check)
        if projection is not None:
            solve(mixer, projection, activations, targets, check)
    mixer.requires_grad_(False).eval()


def error(mixer: Mixer, activations: Activations, targets: Targets) -> float:
    """Return the weighted mean squared error of a mixer's output: 0 where it is the layer's own, 1 where it is zero."""
    total = 0.0
    with torch.no_grad():
        for rows in activations.batches():
            given = mixer(*activations.inputs(rows, mixer))[: rows.stop - rows.start]
            total += float(targets.error(given, rows)) * (rows.stop - rows.start)
    return total / len(targets.outputs)


def output_projection(mixer: Mixer, activations: Activations) -> nn.Linear | None:
    """Return the linear layer whose result is the mixer's; None where something comes after it."""
    results: list[tuple[nn.Linear, Tensor]] = []
    hooks = [
        module.register_forward_hook(lambda module, _, output: results.append((module, output)))
        for module in mixer.modules()
        if isinstance(module, nn.Linear)
    ]
    try:
        with torch.no_grad():
            output = mixer(*activations.inputs(slice(0, 1), mixer))
    finally:
        for hook in hooks:
            hook.remove()
    return next((module for module, result in results if result is output), None)


def solve(
    mixer: Mixer,
    projection: nn.Linear,
    activations: Activations,
    targets: Targets,
    check: Callable[[], object] = lambda: None,
) -> None:
    """Move the output projection's weight to the weighted least squares of what is left of the outputs.

    With rows of X the projection's inputs and W the weights, the change D minimises |W^(1/2) (X D - left)|^2 + r |D|^2,
    r of :data:`RIDGES`, or is none where all of them would do harm.
    """
    width, device = projection.in_features, targets.outputs.device
    fitted = Moments(width, targets.outputs.shape[-1], device)
    checked = Moments(width, targets.outputs.shape[-1], device)
    first_checked = len(targets.outputs) - _checked(len(targets.outputs))
    entered: list[Tensor] = []
    hook = projection.register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0]))
    try:
        with torch.no_grad():
            for rows in activations.batches():
                check()
                wanted, roots = targets.outputs[rows], targets.weights[rows].sqrt()
                given = mixer(*activations.inputs(rows, mixer))[: len(wanted)]
                features, left = entered.pop()[: len(wanted)] * roots, (wanted - given) * roots
                inside = min(max(first_checked - rows.start, 0), len(wanted))
                fitted.add(features[:inside], left[:inside])
                checked.add(features[inside:], left[inside:])
    finally:
        hook.remove()
    strength = best_strength(fitted, checked)
    if strength is not None:
        with torch.no_grad():
            projection.weight += (fitted + checked).solution(strength).T.to(projection.weight)


class Moments:
    """Sums over tokens that least squares need: X^T X and X^T Y, float64."""

    def __init__(self, width: int, outputs: int, device: torch.device) -> None:
        self.gram = torch.zeros(width, width, dtype=torch.float64, device=device)
        self.moment = torch.zeros(width, outputs, dtype=torch.float64, device=device)

    def add(self, features: Tensor, left: Tensor) -> None:
        """Add tokens, [.., width] and [.., outputs]: products of a batch in their own format, which is fast."""
        features, left = features.flatten(0, -2), left.flatten(0, -2)
        self.gram += (features.T @ features).double()
        self.moment += (features.T @ left).double()

    def __add__(self, other: "Moments") -> "Moments":
        both = Moments(self.moment.shape[0], self.moment.shape[1], self.gram.device)
        both.gram, both.moment = self.gram + other.gram, self.moment + other.moment
        return both

    def solution(self, strength: float) -> Tensor:
        """Return D [width, outputs] that minimises |X D - Y|^2 + r |D|^2, r of the mean of X^T X's diagonal."""
        ridge = strength * float(self.gram.diagonal().mean()) or 1.0
        gram = self.gram + ridge * torch.eye(len(self.gram), dtype=torch.float64, device=self.gram.device)
        return torch.cholesky_solve(self.moment, torch.linalg.cholesky(gram))

    def change(self, solution: Tensor) -> float:
        """Return |X D - Y|^2 - |Y|^2: below zero where D is better than none."""
        return float((solution * (self.gram @ solution - 2 * self.moment)).sum())


def best_strength(fitted: Moments, checked: Moments) -> float | None:
    """Return the strength whose solution of one is best for the other; None: any would do harm there."""
    changes = {strength: checked.change(fitted.solution(strength)) for strength in RIDGES}
    best = min(changes, key=changes.__getitem__)
    return best if changes[best] < 0 else None


def _checked(sequences: int) -> int:
    """Return how many of the sequences, which are two or more, choose and are not trained on."""
    return max(1, sequences // CHECKED)


def _train(
    mixer: Mixer,
    activations: Activations,
    targets: Targets,
    settings: FitSettings,
    check: Callable[[], object],
) -> None:
    mixer.requires_grad_(True).train()
    parameters = list(mixer.parameters())
    optimizer = torch.optim.Adam(parameters, lr=settings.lr, betas=(0.9, 0.95))
    for rows, share in batches_of_steps(settings, len(targets.outputs) - _checked(len(targets.outputs))):
        check()
        optimizer.param_groups[0]["lr"] = settings.lr * share
        loss = targets.error(mixer(*activations.inputs(rows, mixer))[: len(rows)], rows)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()


def batches_of_steps(settings: FitSettings, sequences: int) -> Iterator[tuple[Tensor, float]]:
    """Yield the sequences of each step, int64 [batch], and its part of the peak learning rate.

    Every sequence is drawn once before one is drawn again; the order is the seed's.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    batch, order = min(settings.batch, sequences), torch.empty(0, dtype=torch.long)
    for step in range(settings.steps):
        if len(order) < batch:
            order = torch.cat([order, torch.randperm(sequences, generator=generator)])
        yield order[:batch], _share_of_peak(step, settings.steps)
        order = order[batch:]


def _share_of_peak(step: int, steps: int) -> float:
    warmup = max(1, round(WARMUP * steps))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def _mean_squares(hidden: Tensor, output: Tensor) -> Tensor:
    """Return the mean square of each token's residual stream after the mixer, [L, 1] of [L, d]."""
    return (hidden + output).square().mean(-1, keepdim=True)
