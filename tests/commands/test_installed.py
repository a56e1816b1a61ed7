"""The wheel, installed where there is no clone: `deconattn` trains the demo, exports it and generates from it."""

import os
import re
import shlex
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from deconattn.launch import ranks
from tests.conftest import ROOT
from tests.launch.test_launch import wait_for

pytestmark = pytest.mark.slow
SMALL = (
    "--variant fixedseq --pattern 1:1 --hidden-size 32 --intermediate-size 64 --num-hidden-layers 2 "
    "--num-attention-heads 2 --seq-len 32 --global-batch-size 4 --micro-batch-size 2 --eval-sequences 8"
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet", "--no-deps"]
    subprocess.run([*pip, str(ROOT), "--wheel-dir", str(folder)], check=True)
    (built,) = folder.glob("deconattn-*.whl")
    return built


@pytest.fixture(scope="module")
def binaries(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """bin/ of an environment with the wheel, and with what is installed here but for this clone."""
    folder = tmp_path_factory.mktemp("installed") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "ours.pth").write_text(sysconfig.get_path("purelib") + "\n")  # whose own .pth files do not count
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(folder / "bin" / "python")]
    subprocess.run([*pip, "install", "--quiet", "--no-deps", "--ignore-installed", str(wheel)], check=True)
    return folder / "bin"


class Shell:
    """Types commands in an empty directory."""

    def __init__(self, binaries: Path, folder: Path) -> None:
        ours = {*ranks.VARIABLES, "LOCAL_SIZE", "PYTHONPATH"}
        self.environment = {name: value for name, value in os.environ.items() if name not in ours}
        self.environment |= {"PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}", "TORCHDYNAMO_DISABLE": "1"}
        self.folder = folder

    def __call__(self, line: str, code: int = 0) -> str:
        """Both of its streams."""
        done = subprocess.run(
            shlex.split(line),
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
        )
        assert done.returncode == code, done.stdout
        return done.stdout


@pytest.fixture
def shell(binaries: Path, tmp_path: Path) -> Shell:
    return Shell(binaries, tmp_path)


def said(printed: str, what: str) -> str:
    (found,) = re.findall(rf"^{what}: (.*)$", printed, re.MULTILINE)
    return str(found)


def test_what_is_in_it(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    package = [path for path in (ROOT / "deconattn").rglob("*.*") if path.is_file() and path.suffix != ".pyc"]
    assert len(package) > 100 and {path.relative_to(ROOT).as_posix() for path in package} <= names
    assert {f"deconattn/ds_configs/{path.name}" for path in (ROOT / "ds_configs").glob("*.json")} <= names
    assert not {name.split("/")[0] for name in names} - {"deconattn", "deconattn-0.1.0.dist-info"}


def test_train_resume_export_generate(shell: Shell, binaries: Path) -> None:
    where = shell("python -c 'import deconattn; print(deconattn.__file__)'")
    assert where.startswith(str(binaries.parent))
    printed = shell(f"deconattn train {SMALL} --steps 2 --save run")
    assert said(printed, "export") == "deconattn export run run-hf"
    printed = shell("deconattn train --save run --resume --steps 4")
    assert said(printed, "checkpoint").endswith("run/checkpoints/step-4")
    assert shell(said(printed, "export")) == "step 4 of run/checkpoints/step-4 -> run-hf (fp32)\n"
    ours = shell("deconattn generate run --prompt ROMEO --max-new-tokens 8 --temperature 0")
    assert ours.startswith("ROMEO") and len(ours) > len("ROMEO\n")
    assert shell("python -m deconattn generate run-hf --prompt ROMEO --max-new-tokens 8 --temperature 0") == ours


def test_what_it_says_is_what_can_be_typed(shell: Shell) -> None:
    error = shell(f"deconattn train {SMALL} --data nowhere", code=2)
    assert error == "error: nowhere: no such folder; pack a corpus with deconattn pack\n"
    assert shell("deconattn trian", code=2).startswith("error: there is no command 'trian' (did you mean 'train'?)")
    assert shell("python -m deconattn shards --help").startswith("usage: python -m deconattn shards ")
    started = shell("python -c 'from deconattn.reproduction.jobs import *; print(*TRAIN[1:], *ANALYZE[1:])'")
    assert started == "-m deconattn train -m deconattn analyze\n"


def test_ranks_stop_together(shell: Shell) -> None:
    """The launcher finds ranks that run a module, too."""
    process = subprocess.Popen(
        shlex.split(f"deconattn train {SMALL} --steps 100000 --save run"),
        cwd=shell.folder,
        env=shell.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    metrics = shell.folder / "run" / "metrics.jsonl"
    wait_for(lambda: metrics.exists() and metrics.read_text().count("\n") >= 5, process)
    process.terminate()
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == 0, printed
    assert said(printed, "resume") == "deconattn train --save run --resume"
