"""The command plot."""

import threading
import time
from pathlib import Path

import pytest

from deconattn.cli import run
from deconattn.commands.plot import main
from deconattn.errors import UserError
from deconattn.locks import FolderLock
from tests.commands.test_commands import BLOCKED, python
from tests.runs.conftest import Maker, step_row, write_rows

ROWS = [
    row
    for step in range(1, 21)
    for row in [
        step_row(step, 5 - step / 10, learning_rate=1e-3, tokens_per_second=100.0),
        *([{"step": step, "val_loss": 6 - step / 10}] if step % 10 == 0 else []),
    ]
]


@pytest.fixture
def two(made: Maker) -> list[str]:
    return [str(made("one", ROWS)), str(made("two", ROWS, "--lr", "0.01"))]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["nowhere"], "nowhere is no run folder: give one, with config.json and metrics.jsonl"),
        ([], "there is no run: give run folders"),
        (["{one}", "--smooth", "1"], "--smooth 1: give a weight from 0 to below 1, such as 0.9"),
        (["{one}", "--every", "0"], "--every 0: give seconds above 0"),
        (["{one}", "--out", "a.pdf"], "--out a.pdf: give a name that ends in .png or .svg or .html"),
        (
            ["{one}", "--out", "nowhere/a.svg"],
            "--out nowhere/a.svg: there is no folder nowhere: make it, or give another name",
        ),
        (["{one}", "--live", "--out", "a.svg"], "--live draws in the terminal: leave out --out, or --live"),
        (["{one}", "--live"], "--live needs a terminal: give --out FILE, or leave it out"),
        (["{one}", "--metric", "los"], "--metric los: no run has it; there are loss, grad_norm, learning_rate"),
        (["{one}", "--x", "hours"], "hours"),
    ],
)
def test_errors_are_one_line(
    words: list[str], says: str, two: list[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as leaving:
        run(lambda: main([word.format(one=two[0]) for word in words]))
    assert leaving.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and says in line
    assert not list(tmp_path.glob("a.*"))


def test_in_the_terminal(two: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*two, "--metric", "val_loss", "loss", "--x", "tokens"]) is None
    text = capsys.readouterr().out
    assert "validation loss, nats a token" in text and "a lr 0.002" in text and "b lr 0.01" in text


@pytest.mark.slow
def test_the_terminal_needs_no_extra(two: list[str]) -> None:
    program = BLOCKED.format(names={"matplotlib", "jinja2", "markupsafe", "scipy"})
    text = python(program + "from deconattn.commands import main\nmain(['plot', *sys.argv[1:]])", *two)
    assert "training loss" in text


def test_a_page_says_its_values_and_needs_nothing_else(
    two: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "curves.html"
    main([*two, "--out", str(out), "--smooth", "0.5"])
    assert capsys.readouterr().out == f"written: {out}\n"
    page = out.read_text()
    assert "lr 0.01: 4 at 20 steps" in page and "http" not in page and "src=" not in page
    assert page.count("<figure>") == 5 and 'opacity="0.3"' in page


@pytest.mark.parametrize(("ending", "begins"), [("png", b"\x89PNG"), ("svg", b"<?xml")])
def test_pictures(ending: str, begins: bytes, two: list[str], tmp_path: Path) -> None:
    out = tmp_path / f"curves.{ending}"
    for _ in range(2):  # what is there is replaced
        main([*two, "--out", str(out), "--log", "--metric", "loss"])
    assert out.read_bytes().startswith(begins)
    if ending == "svg":
        assert "lr 0.01" in out.read_text() and "<dc:date>" not in out.read_text()


def test_what_is_not_drawn_is_told(made: Maker, capsys: pytest.CaptureFixture[str]) -> None:
    broken = made("broken", [step_row(1, "nan"), step_row(2, 2.0)])
    (broken / "config.json").write_text("{")
    main([str(broken), str(made("other", ROWS)), "--metric", "loss", "learning_rate"])
    told = capsys.readouterr().err.splitlines()
    assert told[0].startswith(f"note: {broken}/config.json is no run's configuration")
    assert told[1:] == ["note: loss: 1 values are not finite, and are not drawn", "note: learning_rate: not in broken"]


def test_a_run_is_drawn_live_until_it_ends(
    made: Maker, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = made("run", [])
    lock = FolderLock(folder, "training")
    reads = []

    def train() -> None:
        for count in (2, 3):  # the first reading finds nothing
            while len(reads) < count:
                time.sleep(0.005)
            write_rows(folder, ROWS[: 5 * count])
        while len(reads) < 5:
            time.sleep(0.005)
        lock.release()

    from deconattn.runs import run as module

    read = module.read_runs
    monkeypatch.setattr(module, "read_runs", lambda folders: reads.append(1) or read(folders))
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    thread = threading.Thread(target=train)
    thread.start()
    try:
        assert main([str(folder), "--live", "--every", "0.01", "--metric", "loss"]) is None
    finally:
        reads += [1] * 5
        thread.join()
    text = capsys.readouterr().out
    assert "no metrics yet" in text and text.count("training loss") >= 2


def test_ctrl_c_ends_it(two: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("deconattn.runs.run.read_runs", interrupted)
    with pytest.raises(UserError, match="needs a terminal"):
        main([two[0], "--live"])
    assert main(two) == 130
