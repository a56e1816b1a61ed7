"""Progress of what takes more than seconds, with the time left: one look, on standard error, where it is a terminal.

Elsewhere nothing is drawn: a log has lines, which those print that have something to say in one.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, ProgressColumn

Advance = Callable[[int], object]
"""Told what has been done since it was last called."""


def unseen(done: int) -> None:
    """Take what has been done, where nobody looks."""


def error_console() -> "Console":
    """Return rich's console on standard error, which is a terminal where that is one, whatever FORCE_COLOR says.

    Notebooks and CI set that variable, and would have a frame of a bar in the log each time that one is drawn.
    """
    from rich.console import Console  # not cheap, and most commands end before they need it

    return Console(stderr=True, soft_wrap=True, force_terminal=sys.stderr.isatty())


def bar(what: str, amount: "ProgressColumn", *more: "ProgressColumn") -> "Progress":
    """Return a bar that goes when it is done: what, how far, the amount in numbers, the time left, and `more`."""
    from rich.markup import escape
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(escape(what)), BarColumn(), amount, TimeRemainingColumn(), *more)
    return Progress(*columns, console=error_console(), transient=True)


@contextmanager
def progress_bar(what: str, total: int | None, unit: str) -> Iterator[Advance]:
    """Show how much of `total` (None: unknown) is done; call what it gives with what has been done since.

    Args:
        unit: "bytes", or what else is counted, in the plural.
    """
    if not sys.stderr.isatty():
        yield unseen
        return
    from rich.progress import DownloadColumn, ProgressColumn, TextColumn

    amount: ProgressColumn = DownloadColumn()
    if unit != "bytes":
        of_total = "" if total is None else f" of {total:,}"
        amount = TextColumn(f"{{task.completed:,.0f}}{of_total} {unit}")
    with bar(what, amount) as progress:
        task = progress.add_task(what, total=total)
        yield lambda done: progress.advance(task, done)
