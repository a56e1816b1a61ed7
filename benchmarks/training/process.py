"""A process that trains alone, so that its peak memory and its failures are its own.

It is started while the one before it still trains: it imports what it needs and makes its model in host memory, which
takes as long as the measurement itself, and touches no GPU before it is told to go.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import psutil

from benchmarks.machine import ROOT

GO = "go"
OUTPUT_SHOWN = 3000
"""Characters of a failed process's output that are kept."""


def wait_for_turn() -> None:
    """In the process: return when told to go; leave if the parent has ended."""
    if sys.stdin.readline().strip() != GO:
        sys.exit(1)


def output_file() -> Path:
    """In the process: where its result is expected, a JSON object."""
    return Path(os.environ["RESULT_FILE"])


def environment(compiles: bool) -> dict[str, str]:
    """Of a process of this checkout.

    Args:
        compiles: whether it may use torch.compile. Without, importing is quicker, and nothing compiles by accident.
    """
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return os.environ | {"PYTHONPATH": path} | ({} if compiles else {"TORCHDYNAMO_DISABLE": "1"})


def end_tree(process: subprocess.Popen[str]) -> None:
    """Kill what still runs of a process and its children."""
    if process.poll() is None:
        for running in [*psutil.Process(process.pid).children(recursive=True), process]:
            running.kill()
        process.wait()


class TrainingProcess:
    """From the parent's side: `python ARGUMENTS...`, started now and told to go later."""

    def __init__(self, arguments: list[str], compiles: bool = False, variables: dict[str, str] | None = None) -> None:
        self._output = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115  # closed by `finish` and `end`
        self._folder = tempfile.TemporaryDirectory()
        self._result = Path(self._folder.name) / "result.json"
        self._process = subprocess.Popen(
            [sys.executable, *arguments],
            stdin=subprocess.PIPE,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            env=environment(compiles) | (variables or {}) | {"RESULT_FILE": str(self._result)},
            text=True,
        )

    def result(self, seconds: float) -> dict[str, Any]:
        """Let it go, wait so long at most, and give its result.

        If it left none, `failure` is the end of its output, and `stopped` whether its time was up.
        """
        stopped = False
        try:
            self._process.communicate(f"{GO}\n", timeout=max(1.0, seconds))
            ending = f"exit code {self._process.returncode}"
        except subprocess.TimeoutExpired:
            ending, stopped = f"stopped after {seconds:.0f} s", True
        finally:  # also where a signal ends us
            end_tree(self._process)
        self._output.seek(0)
        output = self._output.read()[-OUTPUT_SHOWN:]
        failure = {"failure": f"{output}\n{ending}", "stopped": stopped}
        found = json.loads(self._result.read_text()) if self._result.is_file() else failure
        self._close()
        return found

    def end(self) -> None:
        """End it without its turn."""
        end_tree(self._process)
        self._close()

    def _close(self) -> None:
        if self._process.stdin:
            self._process.stdin.close()
        self._output.close()
        self._folder.cleanup()
