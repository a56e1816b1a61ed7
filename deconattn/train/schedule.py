"""The learning rate as a function of the step: linear warm-up, then half a cosine to zero (paper, table 9)."""

import math


def learning_rate(step: int, peak: float, warmup_steps: int, total_steps: int) -> float:
    """Of optimiser step `step`, counted from 0."""
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
