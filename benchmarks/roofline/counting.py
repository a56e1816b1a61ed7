"""Count of what a traced training step asks of the device, operation by operation, and where in the step.

PyTorch's operators are seen by a dispatch mode, in the backward pass too; those that torch.compile makes by their
launcher, and Triton kernels by theirs, neither of which compiles or launches anything meanwhile. Operators of our own
are looked into: their products count as products, and the tensors that their kernels are given as theirs.
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch._library.custom_ops import OPDEFS
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.roofline.works import (
    Sizes,
    kind_of,
    mixing_flops,
    part_of,
    product_shape,
    size,
    tensors_in,
    traffic,
)
from deconattn.cost.work import Work
from deconattn.model.causal_lm import CausalLM

NARROW = (torch.bfloat16, torch.float16)


class Regions:
    """Where in the step the host is: by what it has entered, and in the backward pass by the forward pass's numbering.

    Autograd numbers its nodes as it makes them, so a node belongs to the region in which its number was given.
    """

    def __init__(self) -> None:
        self._region = "update"
        self._numbers: list[int] = []
        self._entered: list[str] = []

    def enter(self, region: str) -> None:
        self._region = region
        self._numbers.append(torch._C._autograd._get_sequence_nr())
        self._entered.append(region)

    @property
    def here(self) -> str:
        node = torch._C._current_autograd_node()
        if node is None:
            return self._region
        if "AccumulateGrad" in node.name():
            return "gradients"
        at = bisect_right(self._numbers, node._sequence_nr()) - 1
        return self._entered[max(at, 0)]

    def follow(self, model: CausalLM) -> None:
        """Enter `embedding`, `layers` and `head and loss` as a forward pass comes to them."""
        decoder = model.model
        decoder.embed_tokens.register_forward_pre_hook(lambda *_: self.enter("embedding"))
        decoder.embed_tokens.register_forward_hook(lambda *_: self.enter("layers"))
        model.lm_head.register_forward_pre_hook(lambda *_: self.enter("head and loss"))


class Counting(TorchDispatchMode):
    """Counts operations while it is entered.

    Args:
        sizes: of the model.
        regions: that follow it.
        launches: returns the launches so far; without it an operation that moves bytes has one.

    Attributes:
        works: every kind of operation, and how often.
    """

    supports_higher_order_operators = True

    def __init__(self, sizes: Sizes, regions: Regions, launches: Callable[[], int] | None = None) -> None:
        super().__init__()
        self.works: Counter[Work] = Counter()
        self._sizes, self._regions, self._launches = sizes, regions, launches
        self._kernels: list[list[Tensor]] | None = None  # tensors of each Triton launch within an operator of ours

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Let what was compiled run under this mode."""
        return True

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        definition = OPDEFS.get(func._schema.name) if hasattr(func, "_schema") else None
        if definition is not None:
            return self._inside(func, definition, args, kwargs)
        # Within an operator of ours nobody has taken apart what has no kernel of its own.
        if self._kernels is not None and _is_composite(func):
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        before = self._launches() if self._launches else 0
        result = func(*args, **kwargs)
        if not hasattr(func, "_schema") or not any(self._seen(t) for t in tensors_in([args, kwargs, result])):
            return result
        moved = traffic(func, args, kwargs, result)
        launches = self._launches() - before if self._launches else int(moved > 0)
        if launches and moved:
            self._count(func, args, kwargs, moved, launches)
        return result

    def triton(self, name: str, arguments: dict[str, Any]) -> None:
        """Count a launch of a Triton kernel by what it is given; the compiler's `in_out` is read and written."""
        tensors = {key: value for key, value in arguments.items() if isinstance(value, Tensor)}
        if self._kernels is not None:
            self._kernels.append(list(tensors.values()))
            return
        moved = sum(size(value) * (2 if "in_out" in key else 1) for key, value in tensors.items())
        self.works[Work(part_of(self._regions.here, name, "memory", (), self._sizes), name, "memory", 0, moved, 1)] += 1

    def _inside(self, func: Any, definition: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operator of ours with this mode entered, and count its Triton launches together as its own."""
        kernels, self._kernels = self._kernels, []
        implementations = definition._backend_fns
        device = next((t.device.type for t in tensors_in([args, kwargs])), None)
        implementation = implementations.get(device) or implementations.get(None) or definition._init_fn
        try:
            with self:
                result = implementation(*args, **kwargs)
            launched = self._kernels
        finally:
            self._kernels = kernels
        if launched:
            moved = sum(size(tensor) for tensors in launched for tensor in tensors)
            self._count(func, args, kwargs, moved, len(launched))
        return result

    def _count(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], moved: int, launches: int) -> None:
        name = func._schema.name
        kind, flops, shape, smallest = kind_of(name), 0, (0, 0, 0), 0
        tensors = list(tensors_in([args, {k: v for k, v in kwargs.items() if k != "out"}]))
        if kind == "product":
            shape = product_shape(tensors)
            m, k, n = shape
            flops, smallest = 2 * m * k * n, min(shape)
        elif kind in ("attention", "kernel"):
            named = dict(zip((argument.name for argument in func._schema.arguments), args, strict=False)) | kwargs
            flops = mixing_flops(name, {key: value for key, value in named.items() if isinstance(value, Tensor)})
            smallest = tensors[0].shape[-1]
        narrow = any(tensor.dtype in NARROW for tensor in tensors)
        part = part_of(self._regions.here, name, kind, shape, self._sizes)
        self.works[Work(part, name, kind, flops, moved, launches, narrow, smallest)] += 1

    def _seen(self, tensor: Tensor) -> bool:
        return tensor.is_cuda or self._launches is None


def _is_composite(func: Any) -> bool:
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    return isinstance(func, torch._ops.OpOverload) and not any(has(func.name(), key) for key in ("CPU", "CUDA"))


@contextmanager
def stubbed_triton(counting: Callable[[], Counting | None]) -> Iterator[None]:
    """Neither compile nor launch Triton kernels, ours or torch.compile's; tell the current counting of each launch."""
    from torch._inductor.runtime.triton_heuristics import CachingAutotuner
    from triton.runtime.jit import JITFunction

    def tell(name: str, arguments: dict[str, Any]) -> None:
        if (now := counting()) is not None:
            now.triton(name, arguments)

    def generated(self: Any, *args: Any, stream: Any, **kwargs: Any) -> None:
        names = list(self.triton_meta["signature"])
        tell(self.fn.__name__, dict(zip(names, args, strict=False)) | kwargs)

    def written(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        tell(self.__name__, dict(zip(self.arg_names, args, strict=False)) | kwargs)

    with ExitStack() as stack:
        stack.enter_context(patch.object(CachingAutotuner, "run", generated))
        stack.enter_context(patch.object(CachingAutotuner, "precompile", lambda self, *_, **__: None))
        stack.enter_context(patch.object(JITFunction, "run", written))
        yield
