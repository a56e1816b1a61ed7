"""The operations that operations.py measures: each with its formula, its inputs and what it has to compute and move."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from zlib import crc32

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from deconattn.ops import reference
from deconattn.ops.cross_entropy import linear_cross_entropy
from deconattn.ops.documents import Documents
from deconattn.ops.fixed_map import fixed_map_attention
from deconattn.ops.prefix_average import prefix_attention
from deconattn.ops.softmax_attention import causal_attention
from deconattn.ops.taylor_attention import taylor_attention


@dataclass(frozen=True)
class Shape:
    """Sizes of a problem: `rows` sequences of `length` tokens."""

    rows: int
    length: int
    heads: int
    head_dim: int
    vocab_size: int


@dataclass(frozen=True)
class Problem:
    """What an operation is applied to.

    Attributes:
        inputs: the differentiable tensors. Heads lie in [R, L, heads, head_dim] memory, as projections write them.
        documents: of packed rows, where the case has them.
        labels: int64 [R * L], of the cross-entropy.
    """

    inputs: tuple[Tensor, ...]
    documents: Documents | None = None
    labels: Tensor | None = None

    @property
    def document_ids(self) -> Tensor | None:
        """int64 [R, L]."""
        return None if self.documents is None else self.documents.ids

    def to(self, dtype: torch.dtype) -> "Problem":
        """With inputs in another precision."""
        return replace(self, inputs=tuple(tensor.to(dtype) for tensor in self.inputs))

    def leaves(self) -> "Problem":
        """The same tensors as the start of a differentiation of their own."""
        return replace(self, inputs=tuple(tensor.detach().requires_grad_() for tensor in self.inputs))


BESIDE_FLA = "taylor beside fla"
"""The case in which flash-linear-attention takes part, where it is installed."""
Operation = Callable[[Problem], Tensor]


@dataclass(frozen=True)
class Case:
    """An operation under test.

    Attributes:
        ours: as the models call it.
        formula: the same with its whole map, in the inputs' precision.
        problem: the tensors of a shape.
        products: multiply-adds of the formula's forward pass.
        kernels: the modules of `deconattn.ops.kernels` that have it.
        timed: whether it is raced, too, and not only checked.
    """

    name: str
    ours: Operation
    formula: Operation
    problem: Callable[[Shape, "Draw"], Problem]
    products: Callable[[Shape], int]
    kernels: tuple[str, ...] = ()
    timed: bool = True

    def build(self, shape: Shape, dtype: torch.dtype, device: str) -> Problem:
        """The same numbers every time on a device."""
        return self.problem(shape, Draw(self.name, device)).to(dtype)

    def flops(self, shape: Shape, training: bool) -> int:
        """Of the formula, 2 a multiply-add; a backward pass has two products for each of the forward pass's.

        Nothing for what an implementation computes again, nothing less for one that finds a shorter way.
        """
        return 2 * self.products(shape) * (3 if training else 1)


def bytes_moved(problem: Problem, shape: Shape, training: bool) -> int:
    """Least traffic: forward reads the inputs and writes the output; backward reads both and the output's gradient,
    and writes the inputs' gradients. A loss is no output to speak of."""
    inputs = sum(tensor.nbytes for tensor in problem.inputs)
    mixed = shape.rows * shape.heads * shape.length * shape.head_dim * problem.inputs[-1].itemsize
    if problem.labels is not None:
        mixed = 0
    return 3 * (inputs + mixed) if training else inputs + mixed


class Draw:
    """Random tensors that a case always gets alike."""

    def __init__(self, purpose: str, device: str):
        self.device = device
        self.generator = torch.Generator(device).manual_seed(crc32(purpose.encode()))

    def normal(self, *shape: int) -> Tensor:
        """fp32."""
        return torch.randn(shape, generator=self.generator, device=self.device)

    def heads(self, shape: Shape, heads: int) -> Tensor:
        """[R, heads, L, head_dim]."""
        return self.normal(shape.rows, shape.length, heads, shape.head_dim).transpose(1, 2)

    def integers(self, bound: int, count: int) -> Tensor:
        """int64 [count]."""
        return torch.randint(bound, (count,), generator=self.generator, device=self.device)


def _plain(shape: Shape, draw: Draw) -> Problem:
    return Problem(tuple(draw.heads(shape, shape.heads) for _ in range(3)))


def _grouped(shape: Shape, draw: Draw) -> Problem:
    shared = shape.heads // (2 if shape.heads % 2 == 0 else 1)
    return Problem(tuple(draw.heads(shape, heads) for heads in (shape.heads, shared, shared)))


def _packed(shape: Shape, draw: Draw) -> Problem:
    """Four documents a row, of unequal lengths."""
    positions = torch.arange(shape.length, device=draw.device)
    bounds = torch.tensor([shape.length * part // 16 for part in (3, 4, 11)], device=draw.device)
    ids = torch.searchsorted(bounds, positions, right=True).expand(shape.rows, -1).contiguous()
    starts = torch.cat([bounds.new_zeros(1), bounds])[ids]
    return replace(_plain(shape, draw), documents=Documents(ids, positions - starts))


def _one_map(shape: Shape, draw: Draw) -> Problem:
    """Queries and keys of a stream that all rows share."""
    fixed = replace(shape, rows=1)
    return Problem(
        (draw.heads(fixed, shape.heads)[0], draw.heads(fixed, shape.heads)[0], draw.heads(shape, shape.heads))
    )


def _one_grouped_map(shape: Shape, draw: Draw) -> Problem:
    queries, keys, _ = _grouped(replace(shape, rows=1), draw).inputs
    return Problem((queries[0], keys[0], draw.heads(shape, keys.shape[1])))


def _head(shape: Shape, draw: Draw) -> Problem:
    tokens, width = shape.rows * shape.length, shape.heads * shape.head_dim
    labels = draw.integers(shape.vocab_size, tokens)
    labels[::7] = -100
    return Problem((draw.normal(tokens, width), 0.02 * draw.normal(shape.vocab_size, width)), labels=labels)


def _softmax(problem: Problem) -> Tensor:
    queries, keys, values = problem.inputs
    return causal_attention(queries, keys, values, problem.documents)


def _taylor(problem: Problem) -> Tensor:
    queries, keys, values = problem.inputs
    return taylor_attention(queries, keys, values, problem.document_ids)


def _prefix(problem: Problem) -> Tensor:
    queries, keys, values = problem.inputs
    return prefix_attention(queries, keys, values, problem.document_ids)


def _fixed_map(problem: Problem) -> Tensor:
    queries, keys, values = problem.inputs
    return fixed_map_attention(queries, keys, values)


def _loss(problem: Problem) -> Tensor:
    assert problem.labels is not None
    hidden, weight = problem.inputs
    return linear_cross_entropy(hidden, weight, problem.labels)


def whole_logits_loss(problem: Problem) -> Tensor:
    """The cross-entropy as PyTorch has it: all logits at once, the loss in at least fp32."""
    assert problem.labels is not None
    hidden, weight = problem.inputs
    logits = hidden @ weight.T
    precise = logits if logits.dtype == torch.float64 else logits.float()
    return cross_entropy(precise, problem.labels, reduction="sum")


def _visible_pairs(shape: Shape) -> int:
    return shape.heads * shape.length * (shape.length + 1) // 2


def _packed_pairs(shape: Shape) -> int:
    bounds = [0, *(shape.length * part // 16 for part in (3, 4, 11)), shape.length]
    spans = [stop - start for start, stop in pairwise(bounds)]
    return shape.heads * sum(span * (span + 1) // 2 for span in spans)


def _mapped(pairs: Callable[[Shape], int]) -> Callable[[Shape], int]:
    """Scores and mixing of each visible pair of tokens, in every row."""
    return lambda shape: 2 * shape.rows * pairs(shape) * shape.head_dim


def _fixed_map_products(shape: Shape) -> int:
    """Scores once, mixing in every row."""
    return (1 + shape.rows) * _visible_pairs(shape) * shape.head_dim


def _prefix_products(shape: Shape) -> int:
    """A score and a weighted value a token."""
    return 2 * shape.rows * shape.heads * shape.length * shape.head_dim


def _loss_products(shape: Shape) -> int:
    return shape.rows * shape.length * shape.heads * shape.head_dim * shape.vocab_size


def _softmax_formula(problem: Problem) -> Tensor:
    queries, keys, values = problem.inputs
    return reference.softmax_attention(queries, keys, values, problem.document_ids)


def _taylor_formula(problem: Problem) -> Tensor:
    queries, keys, values = problem.inputs
    return reference.taylor_attention(queries, keys, values, problem.document_ids)


def _prefix_formula(problem: Problem) -> Tensor:
    queries, keys, values = problem.inputs
    return reference.prefix_attention(queries, keys, values, problem.document_ids)


def _fixed_map_formula(problem: Problem) -> Tensor:
    queries, keys, values = problem.inputs
    return reference.fixed_map_attention(queries, keys, values)


def _cases() -> Sequence[Case]:
    """A peer's slow compilation or broken kernel is to cost none of ours: flash-linear-attention has a case apart."""
    whole, packed = _mapped(_visible_pairs), _mapped(_packed_pairs)
    fixed, prefix = ("fixed_map",), ("prefix_attention",)
    taylor = ("taylor_tiles", "taylor_states")
    return (
        Case("fixed map", _fixed_map, _fixed_map_formula, _one_map, _fixed_map_products, fixed),
        Case("prefix", _prefix, _prefix_formula, _plain, _prefix_products, prefix),
        Case("taylor", _taylor, _taylor_formula, _plain, whole, taylor),
        Case("softmax", _softmax, _softmax_formula, _plain, whole),
        Case("softmax, documents", _softmax, _softmax_formula, _packed, packed),
        Case("cross-entropy", _loss, whole_logits_loss, _head, _loss_products),
        Case(BESIDE_FLA, _taylor, _taylor_formula, _plain, whole, taylor[:1]),
        Case(
            "fixed map, grouped heads", _fixed_map, _fixed_map_formula, _one_grouped_map, _fixed_map_products, fixed,
            timed=False,
        ),
        Case("prefix, documents", _prefix, _prefix_formula, _packed, _prefix_products, prefix, timed=False),
        Case("taylor, documents", _taylor, _taylor_formula, _packed, packed, taylor, timed=False),
        Case("softmax, grouped heads", _softmax, _softmax_formula, _grouped, whole, timed=False),
    )  # fmt: skip


CASES = {case.name: case for case in _cases()}
"""By name, the most important first."""
