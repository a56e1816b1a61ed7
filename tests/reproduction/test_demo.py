"""Variants beside each other on one page."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from deconattn.commands.demo import main
from deconattn.errors import UserError
from deconattn.reproduction import demo as demos
from deconattn.reproduction.demo import Demo, make

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--compare standard", "give two to six variants, each once"),
        ("--compare standard standard", "give two to six variants, each once"),
        ("--compare standard nonaproximate", "nonaproximate.*nonapproximate"),
        ("--steps 3", "--steps 3: give 20 or more"),
    ],
)
def test_wrong_flags_are_one_line_and_leave_nothing(words: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        main([*words.split(), "--out", str(tmp_path / "demo")])
    assert not list(tmp_path.iterdir())


def test_a_folder_of_something_else_or_of_another_demo_is_refused(tmp_path: Path) -> None:
    demo = Demo(("standard", "mlp"), tmp_path, 20, 1)
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match="holds thesis.tex and no demo: give another --out"):
        make(demo)
    (tmp_path / "thesis.tex").unlink()
    (tmp_path / demos.PLAN).write_text(json.dumps({"variants": ["standard", "mlp"], "steps": 30}))
    with pytest.raises(UserError, match="is the demo of .*30.*: give its flags, or another --out"):
        make(demo)


def test_a_command_that_fails_names_its_log_and_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demos, "process", lambda name: [sys.executable, "-c", "raise SystemExit('no luck')"])
    demo = Demo(("standard", "mlp"), tmp_path, 20, 2)
    for _ in range(2):
        with pytest.raises(UserError, match=r"train standard ended with exit code 1: see .*train-standard\.log"):
            make(demo)
    assert (tmp_path / "logs" / "train-standard.log").read_text() == "no luck\n"
    assert not demo.children


def test_an_interrupt_ends_the_command_that_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "logs").mkdir()
    monkeypatch.setattr(demos, "process", lambda name: [sys.executable, "-c", "import time; time.sleep(600)"])

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 1)
    try:
        with pytest.raises(KeyboardInterrupt):
            demos._run(Demo(("standard", "mlp"), tmp_path, 20, 2), "probe", [])
    finally:
        signal.signal(signal.SIGALRM, before)


@pytest.mark.slow
def test_the_whole(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "tools" / "demo.py"), "--compare", "standard", "mlp", "--steps", "20"]
    for _ in range(2):  # the second finds all done
        done = subprocess.run([*command, "--out", str(tmp_path)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout == f"page: {tmp_path / 'index.html'}\n"
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert page.count("<figure") >= 2 + 2 + 2
    for words in ("How they learn", "mlp, layer 2: no map", "standard, layer 2: the weight", "ROMEO:", "Try next"):
        assert words in page
