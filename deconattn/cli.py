"""The frame around every command line: flags from a dataclass, errors in one line."""

import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

import tyro

from deconattn.errors import UserError

Config = TypeVar("Config")


def parse(config: type[Config], arguments: Sequence[str] | None = None, default: Config | None = None) -> Config:
    """Parse a command line into `config`, a dataclass whose field docstrings are the help texts.

    Nested dataclasses give flat flags (`--seq-len`, not `--data.seq-len`). A flag that cannot be parsed exits
    with code 2.

    Args:
        arguments: the command line without the program's name; by default the process's.
        default: where flags that are not given come from.
    """
    flat = tyro.conf.configure(tyro.conf.OmitArgPrefixes)
    if default is None:
        return tyro.cli(flat(config), args=arguments)
    return tyro.cli(flat(config), args=arguments, default=default)


def run(command: Callable[[], int | None]) -> None:
    """Run a command line's body and exit: 0, its return value, or 2 after a :class:`UserError`."""
    try:
        code = command()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except BrokenPipeError:  # the reader of our standard output (head, less) has left
        code = 0
    sys.exit(code or 0)
