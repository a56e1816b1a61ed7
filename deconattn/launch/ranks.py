"""Rank of this process, from the environment variables of its launcher.

torchrun and DeepSpeed's launcher set PyTorch's own variables for each rank. `srun` and `mpirun` say the same in theirs,
which are translated here, so that the processes that they start make one run. Where none of them has started this
process as one of several, our own launcher may start ranks.
"""

import os
import random
import re
import socket
import sys
import zlib
from collections.abc import Mapping, MutableMapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from deconattn.errors import UserError
from deconattn.program import command

VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""Variables that PyTorch's launchers set for each rank."""
THIS_MACHINE = "127.0.0.1"
_RANKS = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
"""Variables that only a launcher sets; clusters set MASTER_ADDR for any job."""
_STARTERS = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK", "SLURM_STEP_ID")
"""Variables without which no other of `srun` and `mpirun` counts."""
_PMI_LOCAL = (("MPI_LOCALRANKID", "MPI_LOCALNRANKS"), ("PMI_LOCAL_RANK", "PMI_LOCAL_SIZE"))
_PORTS = range(20_000, 32_000)
"""Ports below the ephemeral range that Linux assigns from."""
_LAST_STEP = 0xFFFFFFF0
"""Slurm's numbers above are no step of `srun`: batch scripts, shells of salloc."""
_VISIBLE = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
_ONE_LAUNCHER_A_MACHINE = "--no_ssh"


def rank() -> int:
    """This process's rank as its launcher set it, before any process group exists."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


@dataclass(frozen=True)
class Place:
    """A process among those that `srun` or `mpirun` started together.

    Attributes:
        starter: what to call it.
        host: rank 0's machine, as the others can reach it; None if nothing says.
        job: a name that all of them share and no others; None if there is none.
    """

    starter: str
    rank: int
    size: int
    local_rank: int
    local_size: int
    host: str | None
    job: str | None

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.size:
            raise UserError(f"{self.starter} says that this is rank {self.rank} of {self.size}: ranks count from 0")

    def variables(self, given: Mapping[str, str]) -> dict[str, str]:
        """PyTorch's variables of the rank; MASTER_ADDR and MASTER_PORT stay what they are where they are set.

        Raises:
            UserError: the place to meet cannot be known.
        """
        host = given.get("MASTER_ADDR", self.host)
        if host is None:
            self.refuse(
                f"{self.starter} started ranks on several machines and does not say which has rank 0: set "
                "MASTER_ADDR to its address for all (mpirun -x MASTER_ADDR=..., or -genv MASTER_ADDR ... with MPICH's)"
            )
        port = given.get("MASTER_PORT")
        if port is None and self.job is not None:
            port = str(_PORTS[zlib.crc32(self.job.encode()) % len(_PORTS)])  # not hash(): that differs by process
        if port is None:
            self.refuse(
                f"{self.starter} gives its ranks no number of their job to derive a port from: set MASTER_PORT to one "
                "that is free, the same for all of them (mpirun -genv MASTER_PORT 29501)"
            )
        sizes = {"WORLD_SIZE": str(self.size), "LOCAL_SIZE": str(self.local_size)}
        ranks = {"RANK": str(self.rank), "LOCAL_RANK": str(self.local_rank)}
        return ranks | sizes | {"MASTER_ADDR": host, "MASTER_PORT": port}

    def refuse(self, reason: str) -> NoReturn:
        """End what all ranks find alike: rank 0 with a UserError, the others without a word."""
        if self.rank:
            sys.exit(2)
        raise UserError(reason)


def place(given: Mapping[str, str]) -> Place | None:
    """This process's place by its environment; None if no `srun` or `mpirun` started it.

    Inside an allocation of Slurm `mpirun` starts its helpers by `srun`, and ranks inherit what they were told: MPI's
    variables are the later word.

    Raises:
        UserError: variables that are incomplete or make no sense.
    """
    for find in (_open_mpi, _pmi, _slurm):
        if (found := find(given)) is not None:
            return found
    if "PMIX_RANK" in given and not given.get("SLURM_STEP_ID", "").isdecimal():
        raise UserError(
            f"PMIX_RANK is set, but nothing says how many ranks there are: set {', '.join(VARIABLES)} for each rank, "
            "or unset PMIX_RANK"
        )
    return None


def is_rank(given: Mapping[str, str], options: Sequence[str]) -> bool:
    """Whether this process is a rank itself, and not where our launcher starts ranks.

    Args:
        options: options of DeepSpeed's launcher; `--no_ssh` wants one launcher on each machine, whoever starts them.

    Raises:
        UserError: options for a launcher where there is to be none, or more than one launcher on a machine.
    """
    here = None if _set(given) else place(given)
    if _ONE_LAUNCHER_A_MACHINE in options:
        if here is not None and here.local_size > 1:
            here.refuse(
                f"DEEPSPEED_ARGS: {_ONE_LAUNCHER_A_MACHINE} is one launcher on each machine, but {here.starter} "
                f"started {here.local_size} on this one: start one (srun --ntasks-per-node 1)"
            )
        return False
    if here is None or here.size == 1:
        return bool(_set(given))
    if options:
        here.refuse(
            f"DEEPSPEED_ARGS is for our launcher, but {here.starter} has started {here.size} ranks: unset it, or add "
            f"{_ONE_LAUNCHER_A_MACHINE} and --node_rank for one launcher on each machine"
        )
    return True


def join(environment: MutableMapping[str, str]) -> None:
    """Set PyTorch's variables from those of `srun` or `mpirun`, unless PyTorch's are set or there is but one process.

    Raises:
        UserError: the ranks could not meet.
    """
    here = None if _set(environment) else place(environment)
    if here is not None and here.size > 1:
        environment.update(here.variables(environment))


def check(given: Mapping[str, str]) -> None:
    """Raises UserError if PyTorch's variables are incomplete or contradictory."""
    if not (ranks := _set(given)):
        return
    if missing := [name for name in VARIABLES if name not in given]:
        raise UserError(
            f"{ranks[0]} is set but {', '.join(missing)} not: set them all, or unset {', '.join(ranks)} and start with "
            f"{command('train')}"
        )
    for name in VARIABLES:
        if name != "MASTER_ADDR" and not given[name].isdecimal():
            raise UserError(f"{name} is {given[name]!r}: it must be a number")
    if int(given["RANK"]) >= int(given["WORLD_SIZE"]):
        raise UserError(
            f"RANK is {given['RANK']} but WORLD_SIZE is {given['WORLD_SIZE']}: ranks count from 0; "
            f"start with {command('train')}, or correct them"
        )


def check_device(given: Mapping[str, str]) -> None:
    """Raises UserError if this machine has no GPU for the rank, but for others."""
    if "LOCAL_RANK" not in given:
        return
    import torch  # only now: whoever has no launcher, and perhaps wants --help alone, does not wait for it

    gpus = torch.cuda.device_count()
    if gpus and int(given["LOCAL_RANK"]) >= gpus:
        raise UserError(
            f"LOCAL_RANK is {given['LOCAL_RANK']} but {socket.gethostname()} shows {gpus} GPUs: "
            "lower its slots in the hostfile (or --num_gpus, --ntasks-per-node)"
        )


def without_rank(given: Mapping[str, str]) -> dict[str, str]:
    """An environment for a command that is to start ranks of its own, whatever rank this process is."""
    return {name: value for name, value in given.items() if name not in (*_RANKS, "LOCAL_SIZE", *_STARTERS)}


def _set(given: Mapping[str, str]) -> list[str]:
    return [name for name in _RANKS if name in given]


def _open_mpi(given: Mapping[str, str]) -> Place | None:
    if "OMPI_COMM_WORLD_RANK" not in given:
        return None
    starter = "mpirun (Open MPI)"
    names = [f"OMPI_COMM_WORLD_{name}" for name in ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE")]
    rank, size, local_rank, local_size = _numbers(given, starter, names)
    host = THIS_MACHINE if local_size == size else None
    return Place(starter, rank, size, local_rank, local_size, host, given.get("PMIX_NAMESPACE"))


def _pmi(given: Mapping[str, str]) -> Place | None:
    """MPICH, Intel MPI, and PALS on Cray's machines; Slurm's own PMI has no local ranks, but Slurm's variables do."""
    local = next((pair for pair in _PMI_LOCAL if pair[0] in given), None)
    if "PMI_RANK" not in given or (local is None and _slurm(given)):
        return None
    starter = "mpirun (PMI)"
    rank, size, local_rank, local_size = _numbers(given, starter, ["PMI_RANK", "PMI_SIZE", *(local or _PMI_LOCAL[0])])
    host = THIS_MACHINE if local_size == size else None
    job = given.get("I_MPI_HYDRA_UUID") or given.get("PALS_APID") or given.get("PMI_JOBID")
    return Place(starter, rank, size, local_rank, local_size, host, job)


def _slurm(given: Mapping[str, str]) -> Place | None:
    """Within `srun`: a batch script has a SLURM_PROCID, too, but no step, unless by its submitter's environment."""
    step, needed = given.get("SLURM_STEP_ID", ""), ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_GTIDS")
    if not step.isdecimal() or int(step) > _LAST_STEP or not all(name in given for name in needed):
        return None
    starter = "srun"
    names = ["SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_NUM_NODES"]
    rank, size, local_rank, machines = _numbers(given, starter, names)
    local_size = len(given["SLURM_GTIDS"].split(","))
    if machines == 1 and local_size != size:
        return None  # a batch script, and the step is the one that submitted it
    if any(re.fullmatch("[^,]+", given.get(name, "")) for name in _VISIBLE):
        local_rank = 0  # Slurm shows each task a GPU of its own
    host = THIS_MACHINE if machines == 1 else first_host(given.get("SLURM_STEP_NODELIST", ""))
    return Place(starter, rank, size, local_rank, local_size, host, f"{given.get('SLURM_JOB_ID')}.{step}")


def first_host(nodes: str) -> str | None:
    """The first of Slurm's list of machines, such as `gpu[03-05,9]-a,login`; None of none."""
    head = re.match(r"(\[[^]]*\]|[^,\[])+", nodes)
    return re.sub(r"\[([^],-]+)[^]]*\]", r"\1", head[0]) if head else None


def _numbers(given: Mapping[str, str], starter: str, names: Sequence[str]) -> list[int]:
    for name in names:
        if not given.get(name, "").isdecimal():
            raise UserError(
                f"{starter} set {names[0]}, but {name} is {given.get(name, 'not set')!r}: correct it, or unset "
                f"{names[0]} to start our own launcher"
            )
    return [int(given[name]) for name in names]


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
