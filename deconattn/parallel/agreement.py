"""Agreement of ranks on work that waits for disks: through the store, as a collective would time out."""

import pickle
import time
from collections.abc import Callable
from itertools import count
from typing import Any

import torch.distributed as dist
from torch.distributed import distributed_c10d

from deconattn.errors import UserError

_FIRST_LOOK, _LAST_LOOK = 0.005, 0.5
_agreed = count()


def everywhere(work: Callable[[], None]) -> None:
    """Do each rank's part of some work, and wait for the others', however long it takes.

    Every rank calls this equally often.

    Raises:
        UserError: on every rank, where some rank's work did; one of them, if several did.
    """
    if dist.get_world_size() == 1:
        work()
        return
    store, key = distributed_c10d._get_default_store(), f"deconattn-everywhere-{next(_agreed)}"
    try:
        work()
    except UserError as error:
        store.set(f"{key}-error", pickle.dumps(error))  # type: ignore[arg-type]
    if store.add(f"{key}-done", 1) == dist.get_world_size():
        failed = store.check([f"{key}-error"])
        store.set(f"{key}-verdict", store.get(f"{key}-error") if failed else b"")  # type: ignore[arg-type]
    else:
        wait_for_key(store, f"{key}-verdict")
    verdict = store.get(f"{key}-verdict")
    if verdict:
        raise pickle.loads(verdict)


def wait_for_key(store: Any, key: str) -> None:
    """Wait until a key is in the store, without holding its connection, which other threads use."""
    pause = _FIRST_LOOK
    while not store.check([key]):
        time.sleep(pause)
        pause = min(_LAST_LOOK, 1.5 * pause)
