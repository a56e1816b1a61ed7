"""One process on the null GPU that trains several times."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.conftest import ROOT


def run(trainings: list[list[str]], environment: dict[str, str], folder: Path) -> list[dict[str, Any]]:
    """Return :class:`.trace.Found` of each training, as objects.

    Args:
        trainings: command lines, without `--save` and without what makes a run short.
        environment: of :func:`.build.build`.
        folder: for runs and answers.
    """
    short = ["--steps", "5", "--eval-every", "1000", "--save-every", "1000"]
    lines = [[*words, *short, "--save", str(folder / f"run-{number}")] for number, words in enumerate(trainings)]
    order, answer = folder / "trainings.json", folder / "answer.json"
    order.write_text(json.dumps(lines), encoding="utf-8")
    kept = {
        name: value for name, value in environment.items() if name not in ("TRITON_INTERPRET", "RANK", "WORLD_SIZE")
    }
    kept |= {"PYTHONPATH": f"{ROOT}:{kept.get('PYTHONPATH', '')}", "TRITON_CACHE_DIR": str(folder / "triton")}
    command = [sys.executable, "-X", "faulthandler", "-m", "tests.nullgpu.trace", str(answer), str(order)]
    done = subprocess.run(command, cwd=ROOT, env=kept, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the null GPU's trainings ended with {done.returncode}:\n{done.stderr[-4000:]}")
    return json.loads(answer.read_text(encoding="utf-8"))
