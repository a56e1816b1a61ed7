"""Python objects between ranks of null GPUs, through the store: PyTorch's own way sums their sizes on the device."""

import pickle
from collections import Counter
from typing import Any

import torch.distributed as dist
from torch.distributed import distributed_c10d

_made: Counter[tuple[int, ...]] = Counter()


def install() -> None:
    """Put these in the place of `torch.distributed`'s."""
    dist.broadcast_object_list = distributed_c10d.broadcast_object_list = broadcast_object_list
    dist.all_gather_object = distributed_c10d.all_gather_object = all_gather_object


def broadcast_object_list(objects: list[Any], src: int = 0, group: Any = None, *_: Any, **__: Any) -> None:
    """Fill `objects` on every rank with those of the global rank `src`."""
    store, key = distributed_c10d._get_default_store(), _key(group)
    if dist.get_rank() == src:
        store.set(key, pickle.dumps(objects))
    else:
        objects[:] = pickle.loads(store.get(key))


def all_gather_object(objects: list[Any], own: Any, group: Any = None) -> None:
    """Fill `objects` with those of the group's ranks."""
    store, key = distributed_c10d._get_default_store(), _key(group)
    store.set(f"{key}-{dist.get_rank()}", pickle.dumps(own))
    objects[:] = [pickle.loads(store.get(f"{key}-{rank}")) for rank in dist.get_process_group_ranks(group)]


def _key(group: Any) -> str:
    ranks = tuple(dist.get_process_group_ranks(group))
    _made[ranks] += 1
    return f"objects-{'.'.join(map(str, ranks))}-{_made[ranks]}"
