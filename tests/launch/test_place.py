"""Ranks that srun, mpirun and torchrun start: who is taken for a rank, and that they make one run."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from deconattn.errors import UserError
from deconattn.launch import ranks
from deconattn.launch.ranks import Place, free_port
from deconattn.reproduction.runner import Child
from tests.launch.test_launch import BIN, SCRIPT, shell_environment
from tests.train.conftest import losses

Environment = dict[str, str]

TORCHRUN = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
BATCH = {"SLURM_JOB_ID": "71", "SLURM_NTASKS": "2", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_GTIDS": "0"}
"""What the script of an sbatch has, where `srun` has started nothing."""


def open_mpi(rank: int, size: int = 2, local_size: int = 2) -> Environment:
    local = {"OMPI_COMM_WORLD_LOCAL_RANK": str(rank % local_size), "OMPI_COMM_WORLD_LOCAL_SIZE": str(local_size)}
    world = {"OMPI_COMM_WORLD_RANK": str(rank), "OMPI_COMM_WORLD_SIZE": str(size), "PMIX_RANK": str(rank)}
    return local | world | {"PMIX_NAMESPACE": "prterun-a-3@1"}


def mpich(rank: int, size: int = 2, local_size: int = 2) -> Environment:
    local = {"MPI_LOCALRANKID": str(rank % local_size), "MPI_LOCALNRANKS": str(local_size)}
    return local | {"PMI_RANK": str(rank), "PMI_SIZE": str(size), "PMI_FD": "9"}


def srun(rank: int, size: int = 2, machines: int = 1, step: str = "0", nodes: str = "gpu[07-09,12]") -> Environment:
    local_size = size // machines
    first = rank // local_size * local_size
    return BATCH | {
        "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": str(rank - first),
        "SLURM_GTIDS": ",".join(map(str, range(first, first + local_size))),
        "SLURM_STEP_ID": step,
        "SLURM_STEP_NUM_TASKS": str(size),
        "SLURM_STEP_NUM_NODES": str(machines),
        "SLURM_STEP_NODELIST": nodes,
    }


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, None),
        (BATCH, None),
        (srun(0, size=1) | {"SLURM_PROCID": "0"}, ("srun", 0, 1, 0, 1, "127.0.0.1", "71.0")),
        (srun(1), ("srun", 1, 2, 1, 2, "127.0.0.1", "71.0")),
        (srun(5, size=8, machines=2), ("srun", 5, 8, 1, 4, "gpu07", "71.0")),
        (srun(5, size=8, machines=2) | {"CUDA_VISIBLE_DEVICES": "1"}, ("srun", 5, 8, 0, 4, "gpu07", "71.0")),
        (srun(5, size=8, machines=2) | {"CUDA_VISIBLE_DEVICES": "0,1"}, ("srun", 5, 8, 1, 4, "gpu07", "71.0")),
        (srun(0, size=2, machines=2, nodes=""), ("srun", 0, 2, 0, 1, None, "71.0")),
        (srun(1, step="4294967290"), None),  # the shell of salloc
        (srun(0) | BATCH, None),  # a batch script whose sbatch was called in a step of two
        (open_mpi(1), ("mpirun (Open MPI)", 1, 2, 1, 2, "127.0.0.1", "prterun-a-3@1")),
        (open_mpi(2, size=4), ("mpirun (Open MPI)", 2, 4, 0, 2, None, "prterun-a-3@1")),
        (BATCH | open_mpi(1), ("mpirun (Open MPI)", 1, 2, 1, 2, "127.0.0.1", "prterun-a-3@1")),
        # mpirun's own helpers were started by srun, one a machine
        (srun(0, size=2, machines=2) | open_mpi(3, size=4), ("mpirun (Open MPI)", 3, 4, 1, 2, None, "prterun-a-3@1")),
        (mpich(1), ("mpirun (PMI)", 1, 2, 1, 2, "127.0.0.1", None)),
        (mpich(1) | {"I_MPI_HYDRA_UUID": "ab"}, ("mpirun (PMI)", 1, 2, 1, 2, "127.0.0.1", "ab")),
        (
            {"PMI_RANK": "3", "PMI_SIZE": "4", "PMI_LOCAL_RANK": "1", "PMI_LOCAL_SIZE": "2", "PALS_APID": "x"},
            ("mpirun (PMI)", 3, 4, 1, 2, None, "x"),
        ),
        # srun --mpi=pmi2 and --mpi=pmix
        (srun(1) | {"PMI_RANK": "1", "PMI_SIZE": "2", "PMI_JOBID": "71.0"}, ("srun", 1, 2, 1, 2, "127.0.0.1", "71.0")),
        (srun(1) | {"PMIX_RANK": "1"}, ("srun", 1, 2, 1, 2, "127.0.0.1", "71.0")),
    ],
)
def test_whose_rank_a_process_is(given: Environment, expected: tuple[object, ...] | None) -> None:
    assert ranks.place(given) == (None if expected is None else Place(*expected))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"PMIX_RANK": "0"}, "nothing says how many ranks there are"),
        ({"PMI_RANK": "0", "PMI_SIZE": "2"}, "MPI_LOCALRANKID is 'not set'"),
        (open_mpi(0) | {"OMPI_COMM_WORLD_SIZE": "two"}, "OMPI_COMM_WORLD_SIZE is 'two'"),
        (open_mpi(2), "rank 2 of 2"),
    ],
)
def test_what_makes_no_sense_is_refused(given: Environment, said: str) -> None:
    with pytest.raises(UserError, match=said):
        ranks.place(given)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("vm", "vm"),
        ("a1,b2", "a1"),
        ("gpu[07-09,12]", "gpu07"),
        ("gpu[3,5-9]-ib,login", "gpu3-ib"),
        ("r[1-2]n[03-04]", "r1n03"),
        ("", None),
    ],
)
def test_the_first_of_slurms_machines(nodes: str, first: str | None) -> None:
    assert ranks.first_host(nodes) == first


def test_all_ranks_find_one_place_to_meet() -> None:
    """And another job or step another."""

    def joined(given: Environment) -> Environment:
        environment = dict(given)
        ranks.join(environment)
        return {name: environment[name] for name in (*ranks.VARIABLES, "LOCAL_SIZE")}

    worlds = [joined(srun(rank, size=4, machines=2)) for rank in range(4)]
    assert [(world.pop("RANK"), world.pop("LOCAL_RANK")) for world in worlds] == [
        ("0", "0"), ("1", "1"), ("2", "0"), ("3", "1"),
    ]  # fmt: skip
    assert worlds[0] == worlds[1] == worlds[2] == worlds[3]
    assert (worlds[0]["WORLD_SIZE"], worlds[0]["LOCAL_SIZE"], worlds[0]["MASTER_ADDR"]) == ("4", "2", "gpu07")
    ports = {
        joined(srun(0) | {"SLURM_JOB_ID": job, "SLURM_STEP_ID": step})["MASTER_PORT"] for job in "12" for step in "12"
    }
    assert len(ports) == 4
    assert all(1024 < int(port) < 32768 for port in ports)
    chosen = {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29999"}
    assert joined(open_mpi(2, size=4) | chosen).items() >= chosen.items()


@pytest.mark.parametrize(
    ("given", "said"),
    [(open_mpi(0, size=4), "set MASTER_ADDR to its address"), (mpich(0), "set MASTER_PORT to one that is free")],
)
def test_where_ranks_cannot_know_where_to_meet_one_of_them_says_so(given: Environment, said: str) -> None:
    with pytest.raises(UserError, match=said):
        ranks.join(dict(given))
    others = {name: "1" if name in ("OMPI_COMM_WORLD_RANK", "PMI_RANK") else value for name, value in given.items()}
    with pytest.raises(SystemExit) as leaving:
        ranks.join(others)
    assert leaving.value.code == 2


def test_pytorchs_variables_come_first() -> None:
    environment = TORCHRUN | open_mpi(0, size=4) | srun(0)
    ranks.join(environment)
    assert environment.items() >= TORCHRUN.items()
    alone = srun(0, size=1)
    ranks.join(alone)
    assert "RANK" not in alone


NO_SSH = ["--no_ssh", "--hostfile", "hosts", "--node_rank", "0"]


@pytest.mark.parametrize(
    ("given", "options", "expected"),
    [
        ({}, [], False),
        ({"MASTER_ADDR": "x"}, [], False),
        (BATCH, [], False),
        (BATCH, ["--num_gpus", "2"], False),
        (srun(0, size=1), [], False),
        (srun(0, size=1), ["--hostfile", "hosts"], False),
        (srun(0), [], True),
        (srun(0, machines=2), [], True),
        (srun(0, machines=2), NO_SSH, False),  # examples/slurm.sbatch
        (srun(0, machines=2), ["--hostfile", "hosts"], "srun has started 2 ranks: unset it, or add --no_ssh"),
        (srun(0), NO_SSH, "started 2 on this one: start one"),
        (open_mpi(0), [], True),
        (open_mpi(0, size=1, local_size=1), [], False),
        (TORCHRUN, [], True),
        ({"RANK": "0", "WORLD_SIZE": "2"}, [], True),  # the worker says what is missing
        ({"RANK": "0", "WORLD_SIZE": "2"}, NO_SSH, False),
    ],
)
def test_who_starts_ranks_and_who_is_one(given: Environment, options: list[str], expected: bool | str) -> None:
    if isinstance(expected, bool):
        assert ranks.is_rank(given, options) == expected
    else:
        with pytest.raises(UserError, match=re.escape(expected)):
            ranks.is_rank(given, options)


STARTS = {
    "mpirun launch.sh": (["bash", SCRIPT], open_mpi),
    "mpirun python launch.sh": ([sys.executable, SCRIPT], open_mpi),
    "srun launch.sh": ([SCRIPT], srun),
    "srun python -m": ([sys.executable, "-m", "deconattn.launch.worker"], srun),
}


@pytest.mark.parametrize(
    "start",
    [start if start == "srun python -m" else pytest.param(start, marks=pytest.mark.slow) for start in STARTS],
)
def test_two_processes_are_one_run(start: str, small: list[str], tmp_path: Path) -> None:
    command, variables = STARTS[start]
    job = str(free_port())  # a port of its own for each test
    processes = [
        subprocess.Popen(
            [*command, *small],
            cwd=tmp_path,
            env=shell_environment() | variables(rank) | {"PMIX_NAMESPACE": job, "SLURM_JOB_ID": job},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert_one_run_of_two(tmp_path)
    assert "validation loss" in outputs[0] and "validation loss" not in outputs[1]


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["--no-python"]])
def test_torchrun(options: list[str], small: list[str], tmp_path: Path) -> None:
    torchrun = [str(BIN / "torchrun"), "--nproc-per-node", "2", "--master-port", str(free_port()), *options]
    done = subprocess.run(
        [*torchrun, SCRIPT, *small], cwd=tmp_path, env=shell_environment(), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert_one_run_of_two(tmp_path)


def assert_one_run_of_two(where: Path) -> None:
    [run] = (where / "runs").iterdir()
    assert json.loads((run / "config.json").read_text())["environment"]["world_size"] == "2"
    assert sorted(losses(run)) == [1, 2, 3, 4, 5, 6]


def test_restarts_are_refused_once_for_all(small: list[str], tmp_path: Path) -> None:
    job = {"SLURM_JOB_ID": str(free_port())}
    processes = [
        subprocess.Popen(
            ["bash", SCRIPT, *small, "--max-restarts", "2"],
            cwd=tmp_path,
            env=shell_environment() | srun(rank) | job,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [2, 2], said
    [line] = "".join(said).splitlines()
    assert line.startswith("error: --max-restarts needs our own launcher")
    assert not list(tmp_path.iterdir())


def test_commands_of_a_reproduction_are_no_ranks_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (srun(1) | open_mpi(1) | mpich(1) | TORCHRUN).items():
        monkeypatch.setenv(name, value)
    script = "import os; from deconattn.launch.ranks import is_rank; print(is_rank(os.environ, []))"
    reading, writing = os.pipe()
    log = tmp_path / "log"
    code = Child([sys.executable, "-c", script], log, writing).wait()
    assert (code, log.read_text()) == (0, "False\n")
    os.close(reading)
    os.close(writing)
