"""What one operation asks of a device: FLOPs, bytes, launches; and the part of a step that it belongs to."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

PARTS = (
    "embedding", "mixers' products", "feed-forward products", "mixing", "norms", "elementwise", "copies",
    "head and loss", "gradients", "update",
)  # fmt: skip
"""Of a step, as it goes; `gradients` are those that are added to sums and cast, `update` norm, clipping and AdamW."""

MIXING = ("_scaled_dot_product", "flash_attn", "_flash_attention", "_cudnn_attention", "varlen_attn")
"""Names of attention that is not ours."""
OURS = ("fixed_map", "prefix_attention", "taylor_tiles", "taylor_states")
"""Names of our mixing kernels, each with a formula in :func:`mixing_flops`."""
COPIES = ("copy_", "clone", "cat", "_to_copy", "contiguous", "repeat_interleave", "fill_", "zero_", "index", "gather")
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "addmm_", "_addmm_activation", "linear")
OVERWRITTEN = ("copy_", "zero_", "fill_", "zero", "fill", "normal_", "uniform_")
"""Operations that write their first argument without reading it."""


@dataclass(frozen=True)
class Sizes:
    """What tells the products of a model apart: tokens of a sequence, widths of feed-forward blocks and vocabulary."""

    length: int
    intermediate: int
    vocabulary: int


def part_of(region: str, name: str, kind: str, shape: Sequence[int], sizes: Sizes) -> str:
    """Return the part that an operation belongs to.

    Args:
        region: where it was called: `layers`, or a part.
        shape: of a product, (m, k, n).
    """
    if region != "layers":
        return region
    if kind == "product":
        wide = {sizes.intermediate, 2 * sizes.intermediate}  # gate and up may be one product
        rest = sorted(shape)
        # The dimension that counts tokens is no width, though one of the widths may be as large.
        tokens = [size for size in rest if size % sizes.length == 0] or rest
        rest.remove(max([size for size in tokens if size not in wide] or tokens))
        return "feed-forward products" if wide & set(rest) else "mixers' products"
    if kind in ("attention", "kernel"):
        return "mixing"
    if "norm" in name:
        return "norms"
    return "copies" if name.split("::")[-1] in COPIES else "elementwise"


def kind_of(name: str) -> str:
    """Return the kind of an operator or kernel by its name."""
    plain = name.split("::")[-1]
    if plain in PRODUCTS:
        return "product"
    if plain.removesuffix("_backward") in OURS:
        return "kernel"
    return "attention" if plain.startswith(MIXING) or plain.lstrip("_").startswith(MIXING) else "memory"


def product_shape(operands: Sequence[Tensor]) -> tuple[int, int, int]:
    """Return (m, k, n) of the last two operands that are matrices, [m, k] and [k, n]; a batch counts as rows."""
    left, right = [tensor for tensor in operands if tensor.ndim >= 2][-2:]
    return prod(left.shape[:-1]), left.shape[-1], right.shape[-1]


def mixing_flops(name: str, tensors: dict[str, Tensor]) -> int:
    """FLOPs of attention or of one of our mixing kernels, 2 a multiply-add, of causal maps half.

    A backward pass is 2.5 times the forward pass, whose scores it computes again; a fixed map's is that of one
    map for all rows. What our kernels compute beyond their formula (padding, chunks) is not counted.

    Args:
        tensors: the arguments by name; queries [R, heads, L, x], values [R, heads, L, x].
    """
    plain = name.split("::")[-1].removesuffix("_backward")
    backward = "backward" in name
    queries = tensors["queries"] if "queries" in tensors else tensors["query"]
    length, width = queries.shape[-2:]
    heads = prod(queries.shape[:-2])  # of all rows; a fixed map's are one row's
    if plain == "fixed_map":
        rows = tensors["values"].shape[0]
        return ((3 + 2 * rows) if backward else (1 + rows)) * heads * length**2 * width
    if plain == "prefix_attention":
        forward = 4 * heads * length * width
    elif plain == "taylor_states":
        features = 1 + width + width * (width + 1) // 2
        forward = 4 * heads * length * features * (width + 1)
    else:
        forward = 2 * heads * length**2 * width
    return forward * 5 // 2 if backward else forward


def size(tensor: Tensor) -> int:
    """Bytes of a tensor's elements; those that an expansion repeats count once."""
    spans = [(n, abs(stride)) for n, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride]
    return tensor.element_size() * (prod(n for n, _ in spans) if tensor.numel() else 0)


def tensors_in(values: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested arguments or results."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, (list, tuple)):
        for value in values:
            yield from tensors_in(value)
    elif isinstance(values, dict):
        yield from tensors_in(list(values.values()))


def place(tensor: Tensor) -> tuple[int, int]:
    """What two names of the same elements have in common."""
    return tensor.data_ptr(), size(tensor)


def traffic(func: torch._ops.OpOverload, args: Sequence[Any], kwargs: dict[str, Any], result: Any) -> int:
    """Bytes that an operator reads and writes: each tensor once, twice if changed in place; of rows those looked up.

    0 for what computes nothing: views, and memory that is only allocated.
    """
    name, schema = func._schema.name.split("::")[-1], func._schema
    if "empty" in name or name in ("detach", "alias", "lift_fresh", "set_"):
        return 0
    given = dict(zip((argument.name for argument in schema.arguments), args, strict=False)) | kwargs
    written: dict[tuple[int, int], Tensor] = {}
    read: dict[tuple[int, int], Tensor] = {}
    for argument in schema.arguments:
        tensors = {place(tensor): tensor for tensor in tensors_in(given.get(argument.name))}
        changed = argument.alias_info is not None and argument.alias_info.is_write
        if changed and not (name == "_fused_adamw_" and argument.name == "grads"):
            written |= tensors
        if not changed or not (argument.kwarg_only or name in OVERWRITTEN):
            read |= tensors
    results = {place(tensor): tensor for tensor in tensors_in(result)}
    if not written and results and all(_shares(tensor, read.values()) for tensor in results.values()):
        return 0
    written |= {key: tensor for key, tensor in results.items() if key not in read}
    if name in ("embedding", "index_select", "gather", "index"):  # the rows that are looked up, not the table
        table = place(next(tensors_in(args)))
        read = {key: tensor for key, tensor in read.items() if key != table}
        read |= {(-key[0], key[1]): tensor for key, tensor in results.items()}
    if name in ("scatter_add_", "index_put_", "index_add_", "scatter_"):  # what is added, and as much read and written
        touched = sum(map(size, read.values())) - size(next(tensors_in(args)))
        return 2 * touched
    return sum(map(size, read.values())) + sum(map(size, written.values()))


def _shares(tensor: Tensor, others: Iterable[Tensor]) -> bool:
    where = tensor.untyped_storage().data_ptr()
    return any(where == other.untyped_storage().data_ptr() for other in others)
