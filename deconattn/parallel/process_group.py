"""Process group start-up: devices, threads, timeouts, and a wait that is no collective."""

import ipaddress
import logging
import os
import pickle
import socket
import time
import warnings
from collections.abc import Callable
from datetime import timedelta
from itertools import count
from typing import TypeVar

import torch
from torch.distributed import distributed_c10d

from deconattn.errors import UserError

SECONDS_BETWEEN_LOOKS = 0.2
T = TypeVar("T")
_published = count()


def start_distributed(
    timeout: timedelta = timedelta(minutes=10),
    meet: Callable[[timedelta], torch.distributed.Store | None] | None = None,
) -> torch.device:
    """Join the process group and return this rank's device.

    Args:
        meet: waits for the other ranks, after all that takes long to import, and returns the store that they met at
            (see :func:`open_store`); None where this function is to find it.
        timeout: a collective that waits longer for a rank fails (gloo: an exception; NCCL: its watchdog ends the
            process, which is PyTorch's default). Groups made later, DeepSpeed's own included, have it too.

    Raises:
        RuntimeError: not all ranks came within the timeout.
    """
    if "OMP_NUM_THREADS" not in os.environ and not torch.cuda.is_available():
        ranks_here = int(os.environ.get("LOCAL_SIZE", os.environ.get("WORLD_SIZE", "1")))
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // ranks_here))
    if "RANK" not in os.environ:  # started without a launcher: a world of one
        # Port 0: the store takes a free one itself, so that none can be lost between finding and opening it.
        os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")

    quiet_accelerator()
    import deepspeed
    import deepspeed.ops

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # DeepSpeed calls collectives by names that torch 2.13 is renaming, on every rank.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    # Compiled for inference only, half a minute on the first start; nothing in training uses it.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    # A new group has the module's default, not the default group's timeout, and DeepSpeed has no way to say another.
    distributed_c10d.default_pg_timeout = distributed_c10d.default_pg_nccl_timeout = timeout
    backend = "nccl" if device.type == "cuda" else "gloo"
    store = (meet and meet(timeout)) or _loopback_store(timeout)
    if store is not None:
        rank, size = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE"))
        bound = device if device.type == "cuda" and size > 1 else None  # as DeepSpeed does it
        torch.distributed.init_process_group(
            backend, store=store, rank=rank, world_size=size, timeout=timeout, device_id=bound
        )
    deepspeed.init_distributed(dist_backend=backend, timeout=timeout, verbose=False)
    return device


def open_store(timeout: timedelta) -> torch.distributed.TCPStore:
    """Open the store at MASTER_ADDR and MASTER_PORT, which rank 0 keeps, or torchrun; others wait for it alone.

    Raises:
        RuntimeError: rank 0 cannot listen there, or does not within the timeout.
    """
    if (store := _loopback_store(timeout)) is not None:
        return store
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    rank, size = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE"))
    listens = rank == 0 and not is_torchrun()
    return torch.distributed.TCPStore(
        host, port, size, is_master=listens, timeout=timeout, wait_for_workers=False, multi_tenant=True
    )


def is_torchrun() -> bool:
    """Whether torchrun's agent keeps the store, and looks after ranks that die."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def _loopback_store(timeout: timedelta) -> torch.distributed.TCPStore | None:
    """Return the store where the ranks of one machine meet, which no other machine can reach.

    PyTorch's own listens on every interface, and whoever reaches it can write what the ranks unpickle. None where
    MASTER_ADDR is no address of the loopback, or torchrun keeps the store.
    """
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    if not _is_loopback(host) or is_torchrun():
        return None
    rank, size = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE"))
    if rank:
        return torch.distributed.TCPStore(host, port, size, is_master=False, timeout=timeout, wait_for_workers=False)
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
        except OSError as error:
            raise RuntimeError(f"{host}:{port}: {error.strerror}") from error
        listener.listen(max(128, size))
        return torch.distributed.TCPStore(
            host,
            listener.getsockname()[1],
            size,
            is_master=True,
            timeout=timeout,
            wait_for_workers=False,
            master_listen_fd=listener.detach(),
        )


def _is_loopback(host: str) -> bool:
    """Whether every machine takes a host for itself; a name may stand for another address elsewhere."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def tell_host() -> None:
    """Leave the name of this rank's machine where :func:`host_of` finds it; no collective."""
    distributed_c10d._get_default_store().set(f"deconattn-host-{torch.distributed.get_rank()}", socket.gethostname())


def host_of(rank: int) -> str:
    """Return the name of a rank's machine, which that rank has told."""
    return distributed_c10d._get_default_store().get(f"deconattn-host-{rank}").decode()


def rank_0_alone(make: Callable[[Callable[[], bool]], T], stop: Callable[[], bool]) -> T:
    """What rank 0 makes, on every rank; the others wait without a collective, which would time out.

    Every rank calls this equally often.

    Args:
        make: called with a function that tells whether any rank was asked to stop.
        stop: whether this rank was.
    """
    store, key = distributed_c10d._get_default_store(), f"deconattn-{next(_published)}"
    wish = f"{key}-stop"
    if torch.distributed.get_rank() == 0:
        made_here = make(lambda: stop() or store.check([wish]))
        store.set(key, pickle.dumps(made_here))  # type: ignore[arg-type]
        return made_here
    told = False
    while not store.check([key]):
        if not told and stop():
            store.set(wish, "")
            told = True
        time.sleep(SECONDS_BETWEEN_LOOKS)
    made: T = pickle.loads(store.get(key))
    return made


def from_rank_0(make: Callable[[], T]) -> T:
    """What rank 0 makes, on every rank; the others wait without a collective, which would time out.

    Every rank calls this equally often.

    Raises:
        UserError: on every rank, where making it did.
    """
    store, key = distributed_c10d._get_default_store(), f"deconattn-{next(_published)}"
    if torch.distributed.get_rank() == 0:
        try:
            made: T | UserError = make()
        except UserError as error:
            made = error
        store.set(key, pickle.dumps(made))  # type: ignore[arg-type]
    else:
        store.wait([key], timedelta(days=7))
        made = pickle.loads(store.get(key))
    if isinstance(made, UserError):
        raise made
    return made


def quiet_accelerator() -> None:
    """Tell DeepSpeed, here and in child processes, that there is no GPU before it warns of finding none."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
