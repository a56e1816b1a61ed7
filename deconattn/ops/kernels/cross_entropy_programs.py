"""Programs of the two passes over logits: one row each way, all arithmetic in fp32."""

# mypy: disable-error-code="no-untyped-def"
import triton
import triton.language as tl

from deconattn.ops.logits import NOWHERE as _NOWHERE

NOWHERE = tl.constexpr(_NOWHERE)
LOG2_E = tl.constexpr(1.4426950408889634)
LOWEST = tl.constexpr(-2e38)
"""A maximum that no logit has raised yet: finite, as is LOG2_E times it."""


@triton.jit
def log_normalisers_kernel(logits, targets, normalisers, picked, width, words, BLOCK: tl.constexpr):
    """A row's log-sum-exp and its target's logit, in one reading.

    `width`, the length of a row, is a multiple of 16, so that loads which end there are whole words of memory; those
    that end at `words` would not be. One maximum serves a whole block: each lane has a sum of its own, and a logit
    takes one exponential.
    """
    row = tl.program_id(0).to(tl.int64)
    start_of_row = logits + row * width
    largest = tl.full((), LOWEST, tl.float32)
    sums = tl.zeros([BLOCK], tl.float32)
    for start in range(0, width, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        scores = tl.load(start_of_row + columns, mask=columns < width, other=0.0).to(tl.float32)
        scores = tl.where(columns < words, scores, float("-inf"))
        raised = tl.maximum(largest, tl.max(scores, axis=0))
        sums = sums * tl.exp2((largest - raised) * LOG2_E) + tl.exp2((scores - raised) * LOG2_E)
        largest = raised
    tl.store(normalisers + row, largest + tl.log2(tl.sum(sums, axis=0)) / LOG2_E)
    target = tl.load(targets + row)
    here = (target >= 0) & (target < words)
    found = tl.load(start_of_row + target, mask=here, other=0.0).to(tl.float32)
    tl.store(picked + row, tl.where(here | (target == NOWHERE), found, float("nan")))


@triton.jit
def logit_gradients_kernel(logits, targets, normalisers, width, words, slope, blocks, BLOCK: tl.constexpr):
    """A block of a row: exp(logit - normaliser), less one at the target, in the logits' place; 0 beyond the words.

    Where there is a z-loss, the exponential is taken times 1 + slope * normaliser.
    """
    row = (tl.program_id(0) // blocks).to(tl.int64)
    columns = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    places = logits + row * width + columns
    normaliser = tl.load(normalisers + row)
    target = tl.load(targets + row)
    scores = tl.load(places, mask=columns < width, other=0.0).to(tl.float32)
    factor = 1.0 + slope * tl.where(normaliser < float("inf"), normaliser, 0.0)
    gradients = tl.exp2((scores - normaliser) * LOG2_E) * factor - tl.where(columns == target, 1.0, 0.0)
    gradients = tl.where(columns < words, gradients, 0.0)
    tl.store(places, gradients.to(logits.dtype.element_ty), mask=columns < width)
