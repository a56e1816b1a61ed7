"""The process around training: distributed start-up, threads, versions, memory."""

import logging
import os
import platform
import socket
import sys
from importlib.metadata import version

import psutil
import torch


def rank() -> int:
    """This process's rank as its launcher set it, before any process group exists."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def start_distributed() -> torch.device:
    """Join the process group; returns this rank's device."""
    if "OMP_NUM_THREADS" not in os.environ and not torch.cuda.is_available():
        ranks_here = int(os.environ.get("LOCAL_SIZE", world_size()))
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // ranks_here))
    if "RANK" not in os.environ:  # started without a launcher: a world of one
        os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1")
        os.environ["MASTER_PORT"] = str(free_port())

    quiet_accelerator()
    import deepspeed
    import deepspeed.ops

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # Compiled for inference only, half a minute on the first start; nothing in training uses it.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    deepspeed.init_distributed(dist_backend="nccl" if device.type == "cuda" else "gloo", verbose=False)
    return device


def quiet_accelerator() -> None:
    """Tell DeepSpeed, here and in child processes, that there is no GPU before it warns of finding none."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


def free_port() -> int:
    """A TCP port of this machine that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


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
