"""Ledger of one rank: bytes that its meta tensors would hold, and bytes that its collectives would send."""

import weakref
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.utils._python_dispatch import TorchDispatchMode

from deconattn.cost.communication import all_reduce_bytes
from deconattn.parallel.topology import Topology

_AXES = {"model": "tensor", "data": "data", "pipe": "pipeline"}
"""Axis of DeepSpeed's grid -> kind of traffic, as :class:`deconattn.cost.communication.Traffic` has them."""
OTHER = "other"
"""Kind of what goes over no single axis: flags, norms, shapes."""


@dataclass(frozen=True)
class Collective:
    """Kind of collective.

    Attributes:
        kind: `tensor`, `context`, `data`, `pipeline`, `tied` or `other`, by the ranks that take part.
        name: as the field calls it, such as `all-gather`.
        ranks: how many take part.
    """

    kind: str
    name: str
    ranks: int


class Ledger(TorchDispatchMode):
    """Counts while it is entered.

    Attributes:
        held: bytes of meta tensors that are alive.
        peak: most of them since :meth:`restart`.
        calls, sent: of each kind of collective since then, and bytes that this rank sent: by ring algorithms, to each
            of the others its part in an all-to-all, and whole messages.
    """

    def __init__(self) -> None:
        super().__init__()
        self.held = self.peak = 0
        self.calls: Counter[Collective] = Counter()
        self.sent: Counter[Collective] = Counter()
        self._alive: dict[int, int] = {}
        self._kinds: dict[frozenset[int], str] = {}
        self._context: ProcessGroup | None = None

    def know(self, topology: Topology) -> None:
        """Learn which ranks lie along which axis of DeepSpeed's grid, seen from this rank, and who shares sequences.

        These may be all that hold this rank's part of the model, over which ZeRO has another group of the same ranks.
        """
        grid, rank = topology.grid, torch.distributed.get_rank()
        assert grid is not None
        self._context = topology.cp_group
        here = grid.get_coord(rank)
        for axis, kind in _AXES.items():
            along = [name for name in _AXES if name != axis]
            ranks = grid.filter_match(**{name: getattr(here, name) for name in along})
            self._kinds[frozenset(ranks)] = kind
            if axis == "pipe" and len(ranks) > 2:
                self._kinds[frozenset((ranks[0], ranks[-1]))] = "tied"

    def restart(self) -> None:
        """Begin a new count of collectives, and of the peak."""
        self.peak = self.held
        self.calls, self.sent = Counter(), Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            return 1.0
        if func is torch.ops.aten.copy_.default and args[1].is_meta and not args[0].is_meta:
            return args[0]  # to the host: nothing is there to be copied
        if func is torch.ops.aten._to_copy.default and args[0].is_meta and _host(kwargs.get("device")):
            return torch.ones(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        result = func(*args, **kwargs)
        if func.namespace == "c10d":
            self._collective(func._opname, args)
        for tensor in _tensors(result):
            self._see(tensor)
        return result

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage.device.type != "meta" or storage._cdata in self._alive:
            return
        key, size = storage._cdata, storage.nbytes()
        self._alive[key] = size
        self.held += size
        self.peak = max(self.peak, self.held)
        weakref.finalize(storage, self._free, key)

    def _free(self, key: int) -> None:
        self.held -= self._alive.pop(key)

    def _collective(self, operation: str, args: tuple[Any, ...]) -> None:
        found = _COLLECTIVES.get(operation)
        if found is None:
            if operation not in _SILENT:
                raise NotImplementedError(f"a collective of an unknown kind: c10d.{operation}")
            return
        name, whole, place = found
        group = ProcessGroup.unbox(args[place])
        ranks = torch.distributed.get_process_group_ranks(group)
        size = sum(tensor.numel() * tensor.itemsize for tensor in _tensors(args[whole]))
        kind = "pipeline" if name == "send" else self._kinds.get(frozenset(ranks), OTHER)
        if self._context is not None and group.group_name == self._context.group_name:
            kind = "context"
        sent = size
        if name in ("all-reduce", "all-gather", "reduce-scatter", "all-to-all"):
            sent = all_reduce_bytes(size, len(ranks)) // (1 if name == "all-reduce" else 2)
        collective = Collective(kind, name, 2 if name == "send" else len(ranks))
        self.calls[collective] += 1
        self.sent[collective] += sent


_COLLECTIVES = {
    "allreduce_": ("all-reduce", 0, 1),
    "allreduce_coalesced_": ("all-reduce", 0, 1),
    "broadcast_": ("broadcast", 0, 1),
    "reduce_": ("reduce", 0, 1),
    "send": ("send", 0, 1),
    "allgather_": ("all-gather", 0, 2),
    "_allgather_base_": ("all-gather", 0, 2),
    "allgather_into_tensor_coalesced_": ("all-gather", 0, 2),
    "reduce_scatter_": ("reduce-scatter", 1, 2),
    "_reduce_scatter_base_": ("reduce-scatter", 1, 2),
    "reduce_scatter_tensor_coalesced_": ("reduce-scatter", 1, 2),
    "alltoall_": ("all-to-all", 1, 2),
    "alltoall_base_": ("all-to-all", 1, 2),
}
"""Operator -> what it is, which argument has the whole tensors, and which the process group."""
_SILENT = ("recv_", "recv_any_source_", "barrier", "monitored_barrier_")
"""Operators that send nothing from here."""


def _host(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cpu"


def _tensors(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, (list, tuple)):
        for value in values:
            yield from _tensors(value)
