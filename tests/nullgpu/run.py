"""Processes on null GPUs that train several times: one a rank."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from deconattn.launch.ranks import VARIABLES, free_port
from tests.conftest import ROOT

SHORT = ["--steps", "5", "--eval-every", "1000", "--save-every", "1000"]


def run(trainings: list[list[str]], environment: dict[str, str], folder: Path, ranks: int = 1) -> list[dict[str, Any]]:
    """Return :class:`.trace.Found` of each training, as objects; of several ranks, that of the last.

    Args:
        trainings: command lines, without `--save` and without what makes a run short.
        environment: of :func:`.build.build`.
        folder: for runs and answers; it is made.
        ranks: processes, each with a GPU.

    Raises:
        RuntimeError: a rank failed; with the end of what it wrote.
    """
    return run_all_ranks(trainings, environment, folder, ranks)[-1]


def run_all_ranks(
    trainings: list[list[str]], environment: dict[str, str], folder: Path, ranks: int
) -> list[list[dict[str, Any]]]:
    """:func:`run`, but with the answers of every rank."""
    (folder / "exchange").mkdir(parents=True)
    lines = [[*words, *SHORT, "--save", str(folder / f"run-{number}")] for number, words in enumerate(trainings)]
    order = folder / "trainings.json"
    order.write_text(json.dumps(lines), encoding="utf-8")
    kept = {name: value for name, value in environment.items() if name not in {"TRITON_INTERPRET", *VARIABLES}}
    kept |= {"PYTHONPATH": f"{ROOT}:{kept.get('PYTHONPATH', '')}", "NULLGPU_EXCHANGE": str(folder / "exchange")}
    kept |= {"NULLGPU_COUNT": str(ranks)}
    kept.setdefault("TRITON_CACHE_DIR", str(folder / "triton"))
    kept.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder / "inductor"))
    port, processes = str(free_port()), []
    for rank in range(ranks):
        here = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_SIZE": str(ranks)}
        here |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        answer, log = folder / f"answer-{rank}.json", folder / f"log-{rank}"
        command = [sys.executable, "-X", "faulthandler", "-m", "tests.nullgpu.trace", str(answer), str(order)]
        with log.open("w") as file:
            started = subprocess.Popen(command, cwd=ROOT, env=kept | here, stdout=file, stderr=subprocess.STDOUT)
        processes.append((started, answer, log))
    try:
        while any(process.poll() is None for process, _, _ in processes):
            if any(process.poll() for process, _, _ in processes):
                break  # the others may wait for it for ever
            time.sleep(0.1)
        codes = [process.poll() for process, _, _ in processes]
    finally:
        for process, _, _ in processes:
            process.kill()
            process.wait()
    for rank, (code, (_, _, log)) in enumerate(zip(codes, processes, strict=True)):
        if code:
            text = log.read_text(encoding="utf-8", errors="replace")
            raise RuntimeError(f"rank {rank} of the null GPU's trainings ended with {code}:\n{text[-4000:]}")
    return [json.loads(answer.read_text(encoding="utf-8")) for _, answer, _ in processes]
