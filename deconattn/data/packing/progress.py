"""Progress of a pack: bytes done, tokens made and how fast."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from deconattn.progress import bar

Update = Callable[[int, int], None]


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
    from rich.progress import DownloadColumn, TextColumn

    with bar(what, DownloadColumn(), TextColumn("{task.fields[note]}")) as progress:
        task = progress.add_task(what, total=total, note="")
        began, first = time.monotonic(), None

        def update(done: int, tokens: int) -> None:
            nonlocal first
            first = tokens if first is None else first  # an interrupted pack's tokens were not made now
            speed = (tokens - first) / max(time.monotonic() - began, 1e-9)
            progress.update(task, completed=done, note=f"{tokens / 1e6:.1f}M tokens, {speed / 1e6:.1f}M/s")

        yield update
