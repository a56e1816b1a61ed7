"""Paths below a folder that may not be looked into: one line and exit code 2 from every command."""

import ctypes
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.train.conftest import environment

COMMANDS = [
    "train --size tiny --steps 1 --save {locked}/run",
    "train --resume --save {locked}/run",
    "train --data {locked}/corpus",
    "train --config {locked}/flags.yaml",
    "train --plugin {locked}/mine.py",
    "train --fixed-text {locked}/text.txt --variant fixedseq",
    "train --deepspeed-config {locked}/ds.json",
    "generate {locked}/run --prompt a",
    "export {locked}/run {locked}/out",
    "evaluate {locked}/run",
    "analyze {locked}/run --out {locked}/figures",
    "convert {locked}/run {locked}/out",
    "shards verify {locked}/corpus",
    "pack {locked}/text.txt --tokenizer train:400 --out {locked}/out",
]
EACH = """
import contextlib, io, json, sys
from deconattn.__main__ import main
for line in json.load(sys.stdin):
    sys.argv = ["deconattn", *line.split()]
    err = io.StringIO()
    with contextlib.redirect_stderr(err), contextlib.redirect_stdout(err):
        try:
            code = main()
        except SystemExit as leaving:
            code = leaving.code
        except BaseException as error:
            code = repr(error)
    print(json.dumps([line, code, err.getvalue()]))
"""


@pytest.fixture
def locked(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "locked"
    folder.mkdir(mode=0)
    yield folder
    folder.chmod(0o700)


def without_privileges() -> None:
    """Even root is then a user like others."""
    libc = ctypes.CDLL(None)
    for capability in range(64):
        libc.prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP, which counts from the next program on


@pytest.mark.slow
def test_every_command_says_so_in_a_line(locked: Path) -> None:
    lines = [line.format(locked=locked) for line in COMMANDS]
    found = subprocess.run(
        [sys.executable, "-c", EACH],
        input=json.dumps(lines),
        capture_output=True,
        text=True,
        env=environment(),
        preexec_fn=without_privileges,
        check=True,
    )
    results = [json.loads(line) for line in found.stdout.splitlines()]
    assert [result[0] for result in results] == lines
    for line, code, said in results:
        assert code == 2 and said.startswith("error: ") and said.count("\n") == 1, (line, code, said)
        assert str(locked) in said
