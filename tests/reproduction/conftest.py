"""tools/reproduce.py as a process, with quick stand-ins for the commands that it runs."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

TOOL = Path(__file__).with_name("undercover.py")
SMALL = "--table 1 4 --size tiny --variants mlp --context-lengths 64 256 512".split()


def start(out: Path, arguments: Sequence[str] = SMALL, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(TOOL), "--out", str(out), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    )


def reproduce(out: Path, *more: str, arguments: Sequence[str] = SMALL, **environment: str) -> tuple[int, str]:
    """Runs to the end; exit code, and what it wrote on standard error."""
    process = start(out, [*arguments, *more], **environment)
    _, errors = process.communicate(timeout=120)
    return process.returncode, errors


def data_of(out: Path) -> dict[str, Any]:
    return json.loads((out / "data.json").read_text())


def tables_of(out: Path) -> bytes:
    """The tables of data.json, in bytes."""
    return json.dumps(data_of(out)["tables"]).encode()
