"""Several linear layers of one input, as one operation: one product where their tensors lie side by side in memory.

Weights lie so in the flat buffer that ZeRO-1 and 2 and DeepSpeed's bf16 make of a group of parameters, and gradients
where the operation before wrote them so (:mod:`deconattn.ops.swiglu`, :mod:`deconattn.ops.rotation`). Joined are
views alone: to copy weights [n, k] costs 4 n k bytes in 16 bits, in every pass, that nothing hides, and saves reads
of the input, 2 tokens k bytes a layer, that the products hide. What is not side by side is multiplied layer by layer,
and the input's gradient added up within the products, so that no [tokens, k] tensor is added by itself.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from deconattn.ops.matmul import add_matmul, linear, matmul


def linears(
    inputs: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None], groups: Sequence[int]
) -> tuple[Tensor, ...]:
    """inputs @ weight^T + bias of every layer: [.., k], [n, k] each, [n] each -> [.., n] each.

    Args:
        biases: one a weight; None where a layer has none.
        groups: numbers of neighbouring layers whose outputs may be views of one tensor, which lives as long as any
            of them.
    """
    assert sum(groups) == len(weights) == len(biases)
    return _Linears.apply(inputs, tuple(groups), *weights, *biases)


def side_by_side(tensors: Sequence[Tensor], dim: int) -> Tensor | None:
    """Join tensors that lie side by side in one memory along a dimension: a view of them all, or None."""
    first, *others = tensors
    if not others:
        return first
    place, size = first.storage_offset() + first.shape[dim] * first.stride(dim), first.shape[dim]
    for tensor in others:
        same = tensor.stride() == first.stride() and tensor.shape[:dim] == first.shape[:dim]
        same = same and tensor.shape[dim + 1 :] == first.shape[dim + 1 :] and tensor.dtype == first.dtype
        if not same or tensor.storage_offset() != place or _memory(tensor) != _memory(first):
            return None
        place += tensor.shape[dim] * tensor.stride(dim)
        size += tensor.shape[dim]
    shape = (*first.shape[:dim], size, *first.shape[dim + 1 :])
    return first.as_strided(shape, first.stride(), first.storage_offset())


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


class _Linears(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, groups: tuple[int, ...], *parameters: Tensor | None) -> tuple[Tensor, ...]:
        count = len(parameters) // 2
        weights, biases = parameters[:count], parameters[count:]
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(inputs, *weights)
        ctx.has_bias = [bias is not None for bias in biases]
        return outputs(inputs, weights, biases, groups)  # type: ignore[arg-type]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | tuple[int, ...] | None, ...]:
        inputs, *weights = ctx.saved_tensors
        needs_inputs, _, *needed = ctx.needs_input_grad
        grad_inputs = input_gradient(grads, weights) if needs_inputs else None
        found = parameter_gradients(grads, inputs, needed, ctx.has_bias)
        return None if grad_inputs is None else grad_inputs.view(inputs.shape), None, *found


def outputs(
    inputs: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None], groups: Sequence[int]
) -> tuple[Tensor, ...]:
    """:func:`linears`, not differentiable."""
    found: list[Tensor] = []
    start = 0
    for size in groups:
        found += _outputs(inputs, weights[start : start + size], biases[start : start + size])
        start += size
    return tuple(found)


def input_gradient(grads: Sequence[Tensor | None], weights: Sequence[Tensor]) -> Tensor | None:
    """The input's gradient, [tokens, k], of those of the outputs, [.., n] each; None where there is none."""
    upstream = _given(grads)
    total: Tensor | None = None
    for run, joined in _runs(upstream):
        whole = side_by_side([weights[index] for index in run], 0)
        factors = [(upstream[index], weights[index]) for index in run] if whole is None else [(joined, whole)]
        for grad, weight in factors:
            total = matmul(grad, weight) if total is None else add_matmul(total, grad, weight)
    return total


def parameter_gradients(
    grads: Sequence[Tensor | None], inputs: Tensor, needed: Sequence[bool], has_bias: Sequence[bool]
) -> list[Tensor | None]:
    """Gradients of the weights and then of the biases, of those of the outputs, [.., n] each, and the input [.., k].

    Args:
        needed: of each weight, then of each bias.
    """
    upstream, rows, count = _given(grads), inputs.flatten(0, -2), len(has_bias)
    found: list[Tensor | None] = [None] * (2 * count)
    for run, joined in _runs(upstream):
        sizes = [upstream[index].shape[1] for index in run]
        if any(needed[index] for index in run):
            for index, part in zip(run, matmul(joined.T, rows).split(sizes), strict=True):
                found[index] = part if needed[index] else None
        wanted = [index for index in run if has_bias[index] and needed[count + index]]
        if wanted:
            for index, part in zip(run, joined.sum(dim=0).split(sizes), strict=True):
                found[count + index] = part if index in wanted else None
    return found


def _given(grads: Sequence[Tensor | None]) -> dict[int, Tensor]:
    """Gradients that are there, [tokens, n], by the number of their layer."""
    return {index: grad.flatten(0, -2) for index, grad in enumerate(grads) if grad is not None}


def _outputs(inputs: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> Sequence[Tensor]:
    """The outputs of layers, views of one product where the weights lie side by side."""
    given = [bias for bias in biases if bias is not None]
    weight = side_by_side(weights, 0)
    if weight is None or (given and len(given) < len(biases)):
        return [linear(inputs, weight, bias) for weight, bias in zip(weights, biases, strict=True)]
    bias = _joined(given) if given else None
    return linear(inputs, weight, bias).split([len(weight) for weight in weights], dim=-1)


def _joined(vectors: Sequence[Tensor]) -> Tensor:
    whole = side_by_side(vectors, 0)
    return torch.cat(list(vectors)) if whole is None else whole


def _runs(upstream: dict[int, Tensor]) -> Iterator[tuple[list[int], Tensor]]:
    """Yield the numbers of neighbouring layers whose gradients lie side by side, and those as one; each layer once."""
    indices = list(upstream)
    starts = [0]
    for place, (left, right) in enumerate(pairwise(indices), start=1):
        if right != left + 1 or side_by_side([upstream[left], upstream[right]], 1) is None:
            starts.append(place)
    for start, stop in pairwise([*starts, len(indices)] if indices else []):
        run = indices[start:stop]
        joined = side_by_side([upstream[index] for index in run], 1)
        assert joined is not None
        yield run, joined
