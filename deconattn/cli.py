"""Command-line frame: flags from a dataclass, errors in one line."""

import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from inspect import cleandoc
from io import StringIO
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, TextIO, TypeVar, cast

import docstring_parser
import tyro

from deconattn.errors import FULL, UserError, of_the_disk
from deconattn.shown import SafeStream, one_line

if TYPE_CHECKING:
    from rich.table import Table

Config = TypeVar("Config")


def parse(
    config: type[Config],
    arguments: Sequence[str] | None = None,
    default: Config | None = None,
    program: str | None = None,
) -> Config:
    """Parse a command line into `config`, a dataclass whose field docstrings are the help texts.

    Nested dataclasses give flat flags (`--seq-len`, not `--data.seq-len`).

    Args:
        arguments: the command line without the program's name; by default the process's.
        default: where flags that are not given come from.
        program: what the usage line calls the program; by default the file that runs.

    Raises:
        UserError: a flag that is not known or cannot be read.
    """
    flat = tyro.conf.configure(tyro.conf.OmitArgPrefixes)
    if program is not None:
        program = completed_name(program, sys.argv[1:] if arguments is None else arguments)
    with complaints_in_one_line():
        if default is None:
            return tyro.cli(flat(config), args=arguments, prog=program)
        return tyro.cli(flat(config), args=arguments, default=default, prog=program)


def completed_name(program: str, words: Sequence[str]) -> str:
    """Return the name of a program for tyro: as it is spelt, but a shell's completion belongs to a file's name."""
    return program.rpartition("/")[2] if asks_for_completion(words) else program


def asks_for_completion(words: Sequence[str]) -> bool:
    """Whether a command line is `--tyro-print-completion SHELL` or `--tyro-write-completion SHELL FILE`."""
    return bool(words) and words[0].replace("_", "-").startswith("--tyro-")


@contextmanager
def complaints_in_one_line() -> Iterator[None]:
    """Turn the box in which tyro explains a wrong flag, and its exit, into a UserError; fill the lines of its help."""
    box, read = StringIO(), docstring_parser.parse_from_object

    def without_indentation(component: Any) -> docstring_parser.Docstring:
        found = read(component)
        for one in found.params:  # tyro would keep the break before a line that does not begin with a letter
            one.description = one.description and re.sub(r"(?<!\n)\n(?!\n)", " ", cleandoc(one.description))
        return found

    docstring_parser.parse_from_object = without_indentation  # type: ignore[assignment]
    try:
        with redirect_stderr(box):
            yield
    except SystemExit as leaving:
        if not leaving.code:  # --help
            raise
        inside = [line for line in box.getvalue().splitlines() if not line.startswith(("╭", "╰"))]
        bare = (line.replace("─", "").strip(" │") for line in inside)
        raise UserError(" ".join(line for line in bare if line)) from None
    finally:
        docstring_parser.parse_from_object = read


def check_out(out: Path, endings: Sequence[str]) -> None:
    """Check where `--out` is to write a file, before the work begins.

    Raises:
        UserError: the name has none of these endings, or there is no such folder.
    """
    if out.suffix not in endings:
        raise UserError(f"--out {out}: give a name that ends in {' or '.join(endings)}")
    if not out.parent.is_dir():
        raise UserError(f"--out {out}: there is no folder {out.parent}: make it, or give another name")
    if out.is_dir():
        raise UserError(f"--out {out} is a folder: give another name")


def show(table: "Table") -> None:
    """Print a table at its natural width: numbers are not to be cut off."""
    from rich.console import Console  # not cheap, and many a command line has no table

    console = Console()
    natural = console.measure(table, options=console.options.update(width=10_000)).maximum
    console.width = max(console.width, natural)
    console.print(table)


@contextmanager
def handled(handler: Callable[[int, FrameType | None], None], *numbers: signal.Signals) -> Iterator[None]:
    """Install `handler` for signals, and what had them before on exit: a notebook goes on after us."""
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, signal.SIG_DFL if old is None else old)


def run(command: Callable[[], int | None]) -> None:
    """Run a command line's body and exit: 0, its return value, or 2 after a :class:`UserError`."""
    with safe_output():
        code = _code_of(command)
    sys.exit(code or 0)


@contextmanager
def safe_output() -> Iterator[None]:
    """Show what names and texts from files hold, on standard output and error, in place of letting it act."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (cast(TextIO, SafeStream(stream)) for stream in before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def say_error(error: UserError) -> None:
    """Print an error as the one line that it is to be."""
    print(f"error: {one_line(error)}", file=sys.stderr, flush=True)


def _code_of(command: Callable[[], int | None]) -> int | None:
    try:
        return command()
    except UserError as error:
        say_error(error)
        return 2
    except BrokenPipeError:  # the reader of our standard output (head, less) has left
        # What is left in the buffer is written again when Python leaves, which would complain then.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
        return 0
    except OSError as error:
        if error.filename is None and error.errno not in FULL:
            raise
        say_error(of_the_disk(error, error.filename or "the folder to be written"))
        return 2
