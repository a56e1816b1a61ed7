"""The ranks of a run: which process each is, on which machine, and whether all were started alike."""

import hashlib
import os
import socket
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch.distributed as dist

from deconattn.config.command_line import to_json
from deconattn.config.flags import TrainingFlags
from deconattn.errors import UserError


@dataclass(frozen=True)
class Peer:
    """A rank's process.

    Attributes:
        machine: tells machines with one host name apart, and containers that number their processes alike.
    """

    rank: int
    pid: int
    host: str
    machine: str

    def __str__(self) -> str:
        return f"rank {self.rank} (pid {self.pid} on {self.host})"


def introduce() -> list[Peer]:
    """All ranks in order; a collective call."""
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, Peer(dist.get_rank(), os.getpid(), socket.gethostname(), this_machine()))
    return everyone


def check_alike(flags: TrainingFlags, peers: list[Peer]) -> None:
    """A collective call.

    Raises:
        UserError: on every rank, naming the first one whose flags or code are not rank 0's.
    """
    mine = _particulars(flags)
    first = [mine]
    dist.broadcast_object_list(first, src=0)
    differing = next((name for name, value in mine.items() if value != first[0].get(name)), None)
    everyone: list[Any] = [None] * len(peers)
    dist.all_gather_object(everyone, differing and (differing, mine[differing]))
    for peer, difference in zip(peers, everyone, strict=True):
        if difference:
            name, value = difference
            raise UserError(
                f"{peer} has {name} {value} but rank 0 has {first[0].get(name)}: "
                "start the same command with the same installation on every machine"
            )


def _particulars(flags: TrainingFlags) -> dict[str, str]:
    """Settings that must be equal on all ranks, by the names that users know them by."""
    sections = to_json(flags).values()
    values = {"--" + name.replace("_", "-"): str(value) for flags in sections for name, value in flags.items()}
    values["--resume"] = str(flags.run.resume)
    values |= {package: version(package) for package in ("torch", "deepspeed")}
    return values | {"deconattn source": _source_digest()}


def _source_digest() -> str:
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def this_machine() -> str:
    """A name of this machine, or container, that no other has."""
    return f"{socket.gethostname()} {_kernel()}"


def _kernel() -> str:
    """This boot of this kernel, and the numbering of processes that we are in."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""
