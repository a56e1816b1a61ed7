"""Flags of a grid; nothing that PyTorch is needed for, so that `--help` does not wait."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Device = Literal["auto", "cpu", "cuda"]
UNIFORM = "uniform"


@dataclass(frozen=True)
class Request:
    """Flags of a grid. A folder's grid can grow by tasks, variants, patterns, sizes and seeds; the rest stays."""

    tasks: tuple[str, ...] = ("mqar", "induction", "selective-copy", "memorise", "parity", "s5")
    """Tasks, each NAME or NAME?field=value&field=value. Each is trained on all its difficulties at once; other ones
    are given as mqar?pairs=4,8,16."""
    variants: tuple[str, ...] = ()
    """Variants, any that a training takes; by default the paper's seven, and those of --plugin."""
    patterns: tuple[str, ...] = (UNIFORM,)
    """Patterns of the variants' layers, among layers of standard attention."""
    sizes: tuple[str, ...] = ("64x2",)
    """Sizes of model, WIDTHxLAYERS; heads are 32 wide."""
    seeds: int = 3
    """Seeds of each model, from 1: of the initial weights and of the samples, alike for all variants."""
    lr: tuple[float, ...] = (1e-3, 3e-3, 1e-2)
    """Peak learning rates. Of several, each variant gets for each task, pattern and size the one that is best on the
    first seed."""
    steps: int = 600
    """Optimiser steps at most; a model that has solved all difficulties has done."""
    batch_size: int = 32
    """Samples in a step, all of one difficulty; the difficulties take turns."""
    plugin: tuple[Path, ...] = ()
    """Python files that register variants or tasks of your own."""


GROWS = ("tasks", "variants", "patterns", "sizes")
"""Flags by which a folder's grid can grow, beside --seeds."""
