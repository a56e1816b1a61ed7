"""The process around training: distributed start-up, threads, versions, memory."""

import logging
import os
import platform
import random
import socket
import sys
import warnings
from contextlib import suppress
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path

import psutil
import torch
from torch.distributed import distributed_c10d

from deconattn.train.ranks import world_size


def start_distributed(timeout: timedelta = timedelta(minutes=10)) -> torch.device:
    """Join the process group; returns this rank's device.

    Args:
        timeout: a collective that waits longer for a rank fails (gloo: an exception; NCCL: its watchdog ends the
            process, which is PyTorch's default). Groups made later, DeepSpeed's own included, have it too.

    Raises:
        RuntimeError: not all ranks came within the timeout.
    """
    if "OMP_NUM_THREADS" not in os.environ and not torch.cuda.is_available():
        ranks_here = int(os.environ.get("LOCAL_SIZE", world_size()))
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
    deepspeed.init_distributed(dist_backend=backend, timeout=timeout, verbose=False)
    return device


def wait_for_rank_0(what: str) -> None:
    """Return once rank 0 has called this with the same words: not a collective, so that no timeout runs."""
    store = distributed_c10d._get_default_store()
    if torch.distributed.get_rank() == 0:
        store.set(what, "")
    else:
        store.wait([what], timedelta(days=7))


def quiet_accelerator() -> None:
    """Tell DeepSpeed, here and in child processes, that there is no GPU before it warns of finding none."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


def free_port() -> int:
    """A TCP port of this machine that nobody listens on, and none that the system gives to outgoing connections.

    One of those could be taken in the seconds until a rank listens on it.
    """
    ephemeral = Path("/proc/sys/net/ipv4/ip_local_port_range")
    end = int(ephemeral.read_text().split()[0]) if ephemeral.is_file() else 32768
    random_source = random.SystemRandom()  # the global one is the training's
    choices = [random_source.randrange(10_000, end) for _ in range(100)] if end > 10_000 else []
    for port in (*choices, 0):
        with socket.socket() as listener, suppress(OSError):
            listener.bind(("", port))
            return listener.getsockname()[1]
    raise OSError("this machine has no free TCP port")


def environment() -> dict[str, str]:
    """Versions and machine, for the run's configuration."""
    packages = {name: version(name) for name in ("torch", "deepspeed", "transformers")}
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    return {"python": sys.version.split()[0], **packages, "device": device, "world_size": str(world_size())}


def memory_gib() -> float:
    """Peak allocated on the GPU, or what the process holds now on a CPU, GiB."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return psutil.Process().memory_info().rss / 2**30
