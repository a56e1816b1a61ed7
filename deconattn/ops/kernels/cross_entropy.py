"""The two passes over a slice of logits: log-sum-exps and targets' logits, then softmax less one-hot in their place.

A logit of b bytes is read, read again and written: 3 b bytes of traffic. Between the passes ranks that share the
vocabulary exchange their log-sum-exps, so they are two; a row that stays in the cache for the second reading would save
a third of this, less than 1 ms of a step of the 500m model on an H100.
"""

from functools import partial

import torch
import triton
from torch import Tensor

from deconattn.ops import logits as plain
from deconattn.ops.kernels.cross_entropy_programs import log_normalisers_kernel, logit_gradients_kernel
from deconattn.ops.kernels.fallback import Attempts
from deconattn.ops.kernels.gpu import launch_options

BLOCK = 4096
"""Logits of a row at a time: 16 a thread of eight warps, two loads of the widest kind in 16-bit types."""
WARPS = 8
_ATTEMPTS = Attempts("the cross-entropy")


@torch.library.custom_op("deconattn::log_normalisers", mutates_args=())
def _log_normalisers(logits: Tensor, targets: Tensor, words: int) -> tuple[Tensor, Tensor]:
    found = _ATTEMPTS.tried(partial(log_normalisers, logits, targets, words), logits)
    return plain.plain_log_normalisers(logits, targets, words) if found is None else found


@_log_normalisers.register_fake
def _empty_normalisers(logits: Tensor, targets: Tensor, words: int) -> tuple[Tensor, Tensor]:
    return _row_numbers(logits), _row_numbers(logits)


@torch.library.custom_op("deconattn::logit_gradients_", mutates_args=("logits",))
def _logit_gradients_(logits: Tensor, targets: Tensor, normalisers: Tensor, words: int, slope: float = 0.0) -> None:
    done = _ATTEMPTS.tried(partial(logit_gradients_, logits, targets, normalisers, words, slope), logits)
    if done is None:
        plain.plain_gradients_(logits, targets, normalisers, words, slope)


def log_normalisers(logits: Tensor, targets: Tensor, words: int) -> tuple[Tensor, Tensor]:
    """:func:`deconattn.ops.logits.log_normalisers`, by its kernel."""
    rows, width = logits.shape
    normalisers, picked = _row_numbers(logits), _row_numbers(logits)
    with torch.cuda.device_of(logits):
        log_normalisers_kernel[(rows,)](
            logits, targets, normalisers, picked, width, words, BLOCK=_block(width), **launch_options(WARPS)
        )
    return normalisers, picked


def logit_gradients_(logits: Tensor, targets: Tensor, normalisers: Tensor, words: int, slope: float = 0.0) -> Tensor:
    """:func:`deconattn.ops.logits.gradients_`, by its kernel; returns `logits`."""
    rows, width = logits.shape
    block = _block(width)
    blocks = triton.cdiv(width, block)
    with torch.cuda.device_of(logits):
        logit_gradients_kernel[(rows * blocks,)](
            logits, targets, normalisers, width, words, slope, blocks, BLOCK=block, **launch_options(WARPS)
        )
    return logits


def _block(width: int) -> int:
    return min(BLOCK, triton.next_power_of_2(width))


def _row_numbers(logits: Tensor) -> Tensor:
    return logits.new_empty(len(logits), dtype=torch.float32)
