"""Several machines, played by one: launchers side by side on the loopback, and the Slurm script with a toy Slurm."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from deconattn.checkpoint.format import open_checkpoint
from deconattn.errors import UserError
from deconattn.launch.preflight import checked_flags
from deconattn.launch.ranks import free_port
from deconattn.launch.world import world_size
from tests.conftest import ROOT, SMALL
from tests.launch.test_launch import SCRIPT, losses_so_far, shell_environment, wait_for
from tests.launch.test_restarts import kill_a_rank
from tests.train.conftest import losses, validation_losses
from tests.train.jobs import run_job

HOSTS = "127.0.0.1 slots=1\nlocalhost slots=1\n"
SRUN = """#!/usr/bin/env bash
[ "$1" = --kill-on-bad-exit=1 ] || exit 9
shift
SLURM_NODEID=0 "$@" & a=$!
SLURM_NODEID=1 "$@" & b=$!
trap 'kill -TERM $a $b' TERM
while kill -0 $a 2>/dev/null || kill -0 $b 2>/dev/null; do wait $a || true; wait $b || true; done
wait $a && wait $b
"""
SCONTROL = """#!/usr/bin/env bash
case "$*" in
    "show hostnames toy[0-1]") printf '127.0.0.1\\nlocalhost\\n' ;;
    *) echo "$*" >>scontrol.log ;;
esac
"""


@pytest.fixture(scope="module")
def flags(corpus: Path) -> list[str]:
    return ["--data", str(corpus), *SMALL, "--steps", "60", "--save-every", "20"]


@pytest.fixture(scope="module")
def single(flags: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run in one process."""
    run = tmp_path_factory.mktemp("single")
    run_job([*flags, "--save", str(run)])
    return run


def assert_same_as(run: Path, single: Path) -> None:
    for series in (losses, validation_losses):
        assert series(run) == pytest.approx(series(single), rel=1e-5)
    assert open_checkpoint(run).config.environment["world_size"] == "2"


@pytest.mark.slow
def test_launchers_that_do_not_know_of_each_other_restart_together(
    flags: list[str], single: Path, tmp_path: Path
) -> None:
    (tmp_path / "hosts").write_text(HOSTS)
    options = f"--hostfile hosts --no_ssh --master_addr 127.0.0.1 --master_port {free_port()}"
    launchers = [
        subprocess.Popen(
            [SCRIPT, *flags, "--save", "run", "--max-restarts", "1"],
            cwd=tmp_path,
            env=shell_environment() | {"DEEPSPEED_ARGS": f"{options} --node_rank {node}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for node in range(2)
    ]
    kill_a_rank(launchers[1], tmp_path / "run", 0, 25)
    printed = [launcher.communicate(timeout=300)[0] for launcher in launchers]
    assert [launcher.returncode for launcher in launchers] == [0, 0], "\n".join(printed)
    assert "restart 1 of 1 from the newest good checkpoint: the ranks ended with exit code 1" in printed[0]
    assert "restart 1 of 1 from the newest good checkpoint: a rank was killed by signal 9" in printed[1]
    assert_same_as(tmp_path / "run", single)


@pytest.mark.slow
def test_the_slurm_script_trains_stops_before_its_time_and_goes_on(
    flags: list[str], single: Path, tmp_path: Path
) -> None:
    for name, text in {"srun": SRUN, "scontrol": SCONTROL}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "launch.sh").symlink_to(SCRIPT)
    environment = shell_environment()
    environment |= {
        "PATH": f"{tmp_path}{os.pathsep}{environment['PATH']}",
        "SLURM_SUBMIT_DIR": str(tmp_path),
        "SLURM_JOB_NODELIST": "toy[0-1]",
        "SLURM_GPUS_ON_NODE": "1",
    }
    run = tmp_path / "run"

    def submit() -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["bash", str(ROOT / "examples/slurm.sbatch"), "run", *flags],
            env=environment | {"SLURM_JOB_ID": str(free_port() % 10000)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    job = submit()
    wait_for(lambda: (run / "metrics.jsonl").exists() and len(losses_so_far(run)) >= 5, job)
    job.send_signal(signal.SIGUSR1)
    printed, _ = job.communicate(timeout=300)
    assert job.returncode == 0, printed
    assert "stopped on request" in printed
    assert (run / "hostfile").read_text() == HOSTS
    assert (tmp_path / "scontrol.log").read_text().startswith("requeue ")
    stopped = open_checkpoint(run).step
    assert 5 <= stopped < 60
    job = submit()
    printed, _ = job.communicate(timeout=300)
    assert job.returncode == 0, printed
    assert len((tmp_path / "scontrol.log").read_text().splitlines()) == 1, "a run that has ended is not put back"
    assert_same_as(run, single)


@pytest.mark.parametrize(
    ("options", "ranks"),
    [
        ("", 1),
        ("--num_gpus 3", 3),
        ("--hostfile HOSTS", 12),
        ("-H HOSTS --num_nodes 1", 8),
        ("--hostfile HOSTS --num_gpus 2", 4),
        ("--hostfile HOSTS --include b:0,2", 2),
        ("--hostfile HOSTS --exclude a:0", 11),
        ("--hostfile HOSTS --no_ssh --node_rank 1 --master_addr a", 12),
    ],
)
def test_the_number_of_ranks_is_known_before_they_start(
    options: str, ranks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_SIZE", "1")
    hosts = tmp_path / "hosts"
    hosts.write_text("a slots=8\nb slots=4\n")
    assert world_size(options.replace("HOSTS", str(hosts)).split()) == ranks


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--hostfile nowhere", "--hostfile nowhere: no such file"),
        ("--numgpus 4", "unrecognized arguments|--numgpus"),
        ("--hostfile HOSTS --include c", "Hostname 'c' not found in hostfile"),
        ("--hostfile HOSTS --no_ssh --master_addr a", "--no_ssh needs --node_rank, .* 0 to 1"),
        ("--hostfile HOSTS --no_ssh --node_rank 0", "--no_ssh needs --master_addr"),
    ],
)
def test_options_that_cannot_work(options: str, said: str, tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("a slots=8\nb slots=4\n")
    with pytest.raises(UserError, match=f"DEEPSPEED_ARGS: .*({said})"):
        world_size(options.replace("HOSTS", str(hosts)).split())


def test_ranks_that_the_model_or_the_batch_cannot_use_are_refused_before_they_start() -> None:
    with pytest.raises(UserError, match="3 ranks are not a multiple of --tp 2 x --pp 1 = 2"):
        checked_flags(["--tp", "2"], 3)
    with pytest.raises(UserError, match="--global-batch-size 16 is not a multiple of --micro-batch-size 8 x 3 ranks"):
        checked_flags([], 3)


def test_visible_devices_are_the_ranks_of_a_single_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    assert world_size([]) == 2
    assert world_size(["--num_gpus", "1"]) == 1
