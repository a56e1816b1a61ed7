"""Progress bars on standard error, where it is a terminal."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Update = Callable[[int, int], None]


Advance = Callable[[int], object]


@contextmanager
def pack_progress(what: str, total: int | None) -> Iterator[Update]:
    """Show how far it is and how long it will take. The function it gives takes bytes done and tokens made so far.

    Args:
        what: what is being done, for example "packing".
        total: bytes in all; None where that is not known.
    """
    if not sys.stderr.isatty():
        yield lambda done, tokens: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn(what),
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=total, note="")
        began, first = time.monotonic(), None

        def update(done: int, tokens: int) -> None:
            nonlocal first
            first = tokens if first is None else first  # an interrupted pack's tokens were not made now
            speed = (tokens - first) / max(time.monotonic() - began, 1e-9)
            progress.update(task, completed=done, note=f"{tokens / 1e6:.1f}M tokens, {speed / 1e6:.1f}M/s")

        yield update


@contextmanager
def progress_bar(what: str, total: int | None, unit: str) -> Iterator[Advance]:
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
