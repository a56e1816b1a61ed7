"""What every result carries: the machine, the versions, the command, the date."""

import json
import os
import platform
import shlex
import subprocess
import sys
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import torch

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def machine() -> dict[str, Any]:
    """Processor, cores that we may use, memory, GPU, and how busy the machine was."""
    found: dict[str, Any] = {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "system": f"{platform.system()} {platform.machine()}",
    }
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found |= {"gpu": properties.name, "gpu_memory_gib": round(properties.total_memory / 2**30, 1)}
    return found


def versions() -> dict[str, str]:
    """Of Python, of the packages that matter, and of this checkout."""
    found = {"python": platform.python_version()}
    for name in ("torch", "deepspeed", "transformers", "triton", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    commit = subprocess.run(
        ["git", "-C", str(ROOT), "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    )
    if commit.returncode == 0:
        found["commit"] = commit.stdout.strip()
    return found


def command() -> str:
    """The command line as it can be typed in the repository, with the thread count that it ran under."""
    script = Path(sys.argv[0]).resolve()
    shown = script.relative_to(ROOT) if script.is_relative_to(ROOT) else Path(script.name)
    threads = os.environ.get("OMP_NUM_THREADS")
    prefix = f"OMP_NUM_THREADS={threads} " if threads else ""
    return f"{prefix}python {shown} {shlex.join(sys.argv[1:])}".strip()


def describe() -> str:
    """The machine in a line, for a log."""
    found = machine()
    gpu = f", {found['gpu']}" if "gpu" in found else ""
    return (
        f"{found['cpu']}, {found['cores']} cores, {found['memory_gib']:.0f} GiB{gpu}, load {found['load_average'][0]}"
    )


def write_result(path: Path, result: dict[str, Any]) -> None:
    """Write a result, with everything about where it came from in front."""
    header = {"date": date.today().isoformat(), "command": command(), "machine": machine(), "versions": versions()}
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.partial")  # a reader, and who is killed here, has a whole file
    unfinished.write_text(json.dumps(header | result, indent=1) + "\n", encoding="utf-8")
    unfinished.replace(path)


def markdown_table(columns: list[str], rows: list[list[str]]) -> str:
    """A Markdown table, the first column to the left and the others to the right."""
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
