"""What names and texts from files may do to a terminal and to a page: nothing."""

import io
import sys

import pytest
from rich.console import Console
from rich.progress import Progress

from deconattn.cli import run
from deconattn.errors import UserError
from deconattn.shown import SafeStream, data_stream, markdown_table, markdown_text, one_line, visible

EVIL = [
    "\x1b[2J\x1b[1;1H",  # clears the screen
    "\x1b]0;title\x07",
    "\x9b31m",  # CSI in one character
    "a\rb",
    "\u202etxt.exe",  # right to left
    "\u2066x",
    "\ud83d",  # half of a pair, as a file name that is no UTF-8 has
    "\x00",
]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("evil", EVIL, ids=ascii)
def test_hidden_characters_are_shown(evil: str) -> None:
    for text in (visible(evil), one_line(evil)):
        assert text.isprintable() and "\\" in text
        text.encode()
    assert one_line("a\nerror: b\tc") == "a\\nerror: b\\tc"
    assert visible("a\nb\tc é 漢 👩‍👩‍👧") == "a\nb\tc é 漢 👩‍👩‍👧"


@pytest.mark.parametrize("evil", [*EVIL, "x\nerror: all is lost"], ids=ascii)
def test_an_error_is_one_line_whatever_it_names(evil: str, capsys: pytest.CaptureFixture[str]) -> None:
    def fails() -> None:
        print(f"reading {evil}")
        raise UserError(f"{evil}: no such file")

    before = sys.stdout, sys.stderr
    with pytest.raises(SystemExit):
        run(fails)
    assert (sys.stdout, sys.stderr) == before
    out, err = capsys.readouterr()
    assert err.count("\n") == 1 and err.startswith("error: ") and err[:-1].isprintable()
    assert out.replace("\n", "").isprintable()


def test_colours_and_progress_reach_a_terminal_and_nothing_else() -> None:
    terminal = Terminal()
    stream = SafeStream(terminal)
    console = Console(file=stream, force_terminal=True, color_system="standard", width=40, legacy_windows=False)  # type: ignore[arg-type]
    console.print("[red]red[/red] \x1b[2J", highlight=False)
    with Progress(console=console, refresh_per_second=1) as progress:
        progress.add_task("x", total=1, completed=1)
    written = terminal.getvalue()
    assert "\x1b[31mred\x1b[0m" in written and "\x1b[2J" not in written and "\\x1b[2J" in written
    assert "\x1b[?25l" in written and "\x1b[2K" in written  # the bar, which draws over itself


def test_data_into_a_pipe_are_as_they_are() -> None:
    pipe, terminal = io.StringIO(), Terminal()
    data_stream(SafeStream(pipe)).write("\x1b[2J")  # type: ignore[arg-type]
    data_stream(SafeStream(terminal)).write("\x1b[2J")  # type: ignore[arg-type]
    assert pipe.getvalue() == "\x1b[2J" and terminal.getvalue() == "\\x1b[2J"


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", "a | b", "[x](javascript:alert(1))", "a\n# b", "`x`"])
def test_a_page_shows_names_as_they_are(name: str) -> None:
    from markdown_it import MarkdownIt

    cells = [["model", name], ["score", "1"]]
    rendered = MarkdownIt("gfm-like", {"linkify": False}).render(markdown_table(markdown_text(name), cells))
    assert "<script" not in rendered and "<a " not in rendered and "<code" not in rendered
    assert rendered.count("<tr>") == 2 and rendered.count("<th") - rendered.count("<thead") == 2
    assert rendered.count("<h1") == 0
