"""Help and completion wait for nothing that a training needs."""

import subprocess
import sys
from pathlib import Path

import pytest

from deconattn.commands import COMMANDS
from tests.conftest import ROOT

HEAVY = {"torch", "transformers", "deepspeed", "pydantic", "pyarrow", "matplotlib", "wandb", "yaml"}
LOADED = f"""
import atexit, runpy, sys
kind, sys.argv = sys.argv[1], sys.argv[2:]
atexit.register(lambda: print(sorted({HEAVY} & set(sys.modules)), file=sys.stderr))
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True) if kind == "-m" else runpy.run_path(sys.argv[0], run_name="__main__")
"""  # noqa: E501
WAYS = [
    *(["-m", "deconattn", name] for name in COMMANDS),
    ["-m", "deconattn.launch.launcher", str(ROOT / "launch.sh")],
    ["-m", "deconattn.launch.worker"],
    ["file", str(ROOT / "launch.sh")],
    ["file", str(ROOT / "tools/pack.py")],
]
NEEDED = {"reproduce": ["pydantic"]}
"""Its plan is read before its flags are."""


@pytest.mark.usefixtures("no_rank")  # a rank asks how many GPUs there are
@pytest.mark.parametrize("way", WAYS, ids=lambda way: Path(way[-1]).name)
def test_help_imports_nothing_heavy(way: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOADED, *way, "--help"], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout
    assert done.stderr == f"{NEEDED.get(way[-1], [])}\n"


@pytest.mark.parametrize(
    ("file", "flag"),
    [("launch.sh", "--seq-len"), ("tools/pack.py", "--tokenizer"), ("tools/convert.py", "--optimizer")],
)
def test_bash_completes_flags_of_what_it_can_run(file: str, flag: str) -> None:
    """As bash would: the function that is registered for the file's name, asked for what a word may become."""
    script = f"""
source <({file} --tyro-print-completion bash)
function=$(complete -p {Path(file).name} | sed 's/.*-F //; s/ .*//')
COMP_WORDS=({file} {flag[:-2]}) COMP_CWORD=1
$function
echo "${{COMPREPLY[@]}}"
"""
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    done = subprocess.run(
        ["bash", "-c", script.replace(f"({file} --tyro", f"(./{file} --tyro")],
        capture_output=True, text=True, check=False, cwd=ROOT, env={"PATH": path},
    )  # fmt: skip
    assert flag in done.stdout.split(), done.stdout + done.stderr
