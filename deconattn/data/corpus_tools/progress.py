"""A bar on a terminal, nothing elsewhere."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Advance = Callable[[int], object]


@contextmanager
def bar(what: str, total: int | None, unit: str) -> Iterator[Advance]:
    """Show how much of `total` (None: unknown) is done; call what it gives with what has been done since.

    Args:
        unit: "bytes", or what else is counted, in the plural.
    """
    if not sys.stderr.isatty():
        yield lambda done: None
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, DownloadColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn

    amount: ProgressColumn = DownloadColumn()
    if unit != "bytes":
        of_total = "" if total is None else f" of {total:,}"
        amount = TextColumn(f"{{task.completed:,.0f}}{of_total} {unit}")
    columns = (TextColumn(escape(what)), BarColumn(), amount, TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=total)
        yield lambda done: progress.advance(task, done)
