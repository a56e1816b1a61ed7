"""Moments: which state an optimiser keeps of each parameter, and what checkpoints call it."""

from deconattn.config.flag_groups import Optimizer

ADAMW = ("exp_avg", "exp_avg_sq")
MUON = ("momentum_buffer",)
TABLES = ("model.embed_tokens.weight", "lm_head.weight")
"""Matrices that are no linear map between hidden layers: a row of them is a word."""


def is_muons(name: str, dimensions: int, optimizer: Optimizer) -> bool:
    """Whether Muon updates a parameter: a matrix of the hidden layers. AdamW has the others."""
    return optimizer == "muon" and dimensions == 2 and name not in TABLES


def moments_of(name: str, dimensions: int, optimizer: Optimizer) -> tuple[str, ...]:
    """Return the kinds of moments of a parameter, in torch's names."""
    return MUON if is_muons(name, dimensions, optimizer) else ADAMW


def kinds_of(optimizer: Optimizer) -> tuple[str, ...]:
    """Return all kinds of moments that an optimiser keeps."""
    return (*ADAMW, *MUON) if optimizer == "muon" else ADAMW
