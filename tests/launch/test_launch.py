"""The ways in from a shell, and the ways out: kills, signals, and one clear line for what is wrong."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deconattn.checkpoint.format import open_checkpoint, steps_in
from tests.conftest import ROOT
from tests.train.conftest import environment, losses, validation_losses
from tests.train.jobs import run_job

SCRIPT = str(ROOT / "launch.sh")
BIN = Path(sys.executable).parent


def shell_environment() -> dict[str, str]:
    values = environment()
    return values | {"PATH": f"{BIN}{os.pathsep}{values['PATH']}"}


def launch(command: list[str], where: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=where, env=shell_environment(), capture_output=True, text=True, timeout=300, check=False
    )


def start_worker(arguments: list[str], **extra: str) -> subprocess.Popen[str]:
    """The worker itself, as DeepSpeed's launcher starts it, in a world of one."""
    return subprocess.Popen(
        [sys.executable, "-u", SCRIPT, "--local_rank=0", *arguments],
        env=shell_environment() | extra,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for(condition: object, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not condition():  # type: ignore[operator]
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.01)


@pytest.fixture(scope="module")
def long_flags(corpus: Path) -> list[str]:
    """A training of 160 quick steps with many checkpoints: time enough to kill it anywhere."""
    from tests.conftest import SMALL

    return ["--data", str(corpus), *SMALL, "--steps", "160", "--save-every", "20", "--keep", "30"]


@pytest.fixture(scope="module")
def undisturbed(long_flags: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("undisturbed")
    run_job([*long_flags, "--save", str(run)])
    return run


def assert_same_as(run: Path, undisturbed: Path) -> None:
    assert losses(run) == losses(undisturbed)
    assert validation_losses(run) == validation_losses(undisturbed)


@pytest.mark.parametrize(
    "how", ["deepspeed", *(pytest.param(how, marks=pytest.mark.slow) for how in ("./", "bash", "sh"))]
)
def test_every_way_to_start(how: str, small: list[str], tmp_path: Path) -> None:
    command = {
        "deepspeed": ["deepspeed", "--master_port", "29731", SCRIPT],
        "bash": ["bash", SCRIPT],
        "sh": ["sh", os.path.relpath(SCRIPT, tmp_path)],
        "./": [SCRIPT],
    }[how]
    done = launch([*command, *small, "--variant", "fixedseq", "--pattern", "1:3", "--save", "run"], tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    printed = done.stdout + done.stderr
    assert re.search(r"^validation loss: \d+\.\d+ nats$", printed, re.MULTILINE)
    assert f"checkpoint: {tmp_path}/run/checkpoints/step-6" in printed
    assert re.search(r"^export: python .*export_hf.py ", printed, re.MULTILINE)
    assert open_checkpoint(tmp_path / "run").model_config.layer_variants == ("fixedseq", "fixedseq")
    if how != "deepspeed":  # which is DeepSpeed's own launcher, with its own options
        assert not [line for line in printed.splitlines() if re.search(r"\[(INFO|WARNING)\]|Warning", line)]


@pytest.mark.parametrize("how", [pytest.param("deepspeed", marks=pytest.mark.slow), "./"])
def test_a_wrong_flag_is_one_line_and_exit_code_2(how: str, tmp_path: Path) -> None:
    command = ["deepspeed", "--master_port", "29732", SCRIPT] if how == "deepspeed" else [SCRIPT]
    done = launch([*command, "--variant", "fixdseq"], tmp_path)
    assert done.returncode == 2
    errors = [line for line in done.stderr.splitlines() if "error:" in line]
    assert len(errors) == 1
    assert "'fixdseq' (did you mean 'fixedseq'?)" in errors[0]
    assert "Traceback" not in done.stdout + done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_kill_9_between_checkpoints(long_flags: list[str], undisturbed: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start_worker([*long_flags, "--save", str(run)])
    wait_for(lambda: (run / "metrics.jsonl").exists() and len(losses_so_far(run)) >= 50, process)
    process.kill()
    process.communicate()
    assert open_checkpoint(run).step >= 40
    run_job(["--save", str(run), "--resume"])
    assert_same_as(run, undisturbed)


def losses_so_far(run: Path) -> list[str]:
    return (run / "metrics.jsonl").read_text().splitlines()


@pytest.mark.slow
def test_kill_9_while_a_checkpoint_is_written(long_flags: list[str], undisturbed: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments = [*long_flags, "--save", str(run)]
    for _ in range(5):
        process = start_worker(arguments)
        already = len(steps_in(run))
        wait_for(
            lambda already=already: (
                len(steps_in(run)) > already and list((run / "checkpoints").glob(".step-*.partial/slices-*"))
            ),
            process,
        )
        process.kill()
        process.communicate()
        if list((run / "checkpoints").glob(".step-*.partial")):
            break
        arguments = ["--save", str(run), "--resume"]  # the kill came too late: go on and try again
    else:
        pytest.fail("no kill hit a checkpoint that was being written")
    run_job(["--save", str(run), "--resume"])
    assert_same_as(run, undisturbed)
    assert not list((run / "checkpoints").glob(".step-*.partial"))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_worker_saves_and_exits_0(
    number: signal.Signals, long_flags: list[str], undisturbed: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = start_worker([*long_flags, "--save", str(run)])
    wait_for(lambda: (run / "metrics.jsonl").exists() and len(losses_so_far(run)) >= 5, process)
    process.send_signal(number)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 0, printed
    assert f"--save {run} --resume" in printed
    assert open_checkpoint(run).step == max(losses(run))
    run_job(["--save", str(run), "--resume"])
    assert_same_as(run, undisturbed)


@pytest.mark.parametrize("how", [pytest.param("deepspeed", marks=pytest.mark.slow), "./"])
def test_a_signal_to_the_launcher_saves(how: str, long_flags: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = ["deepspeed", "--master_port", "29733", SCRIPT] if how == "deepspeed" else [SCRIPT]
    process = subprocess.Popen(
        [*command, *long_flags, "--steps", "100000", "--save-every", "100000", "--save", str(run)],
        cwd=tmp_path,
        env=shell_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    wait_for(lambda: (run / "metrics.jsonl").exists() and len(losses_so_far(run)) >= 5, process)
    process.terminate()
    printed, _ = process.communicate(timeout=60)  # the ranks hold the pipe until they have left
    assert open_checkpoint(run).step >= 5
    if how == "./":
        assert "stopped on request" in printed
        assert process.returncode == 0, printed
    else:  # DeepSpeed's outer process has no handler; the orphaned ranks notice
        assert "stopped since the launcher is gone" in printed
        assert process.returncode == -signal.SIGTERM


def test_a_second_run_in_a_folder_is_refused(small: list[str], tmp_path: Path) -> None:
    run_job([*small, "--save", str(tmp_path)])
    before = sorted(path.name for path in tmp_path.rglob("*"))
    done = launch([SCRIPT, *small, "--save", str(tmp_path)], tmp_path)
    assert done.returncode == 2
    assert "--resume" in done.stderr
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


@pytest.mark.slow
def test_the_demo_trains_in_about_two_minutes(tmp_path: Path) -> None:
    done = launch([SCRIPT, "--variant", "fixedseq", "--pattern", "1:3"], tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    run = tmp_path / "runs/tiny-fixedseq-1to3"
    final = validation_losses(run)[300]
    assert final < 4.5, "well under the unigram entropy of the demo corpus"
