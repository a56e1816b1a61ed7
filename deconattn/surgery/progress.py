"""Progress of a measurement: a bar with the time left on a terminal, a line a cell elsewhere."""

import time
from collections.abc import Sequence

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from deconattn.progress import error_console
from deconattn.surgery.folder import Cell, Heads, Own


class ProgressView:
    """A view of what :class:`~deconattn.surgery.sensitivity.Sensitivity` and a search do."""

    def __init__(self) -> None:
        self._console = error_console()
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
        self._bar = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=self._console)
        self._task = self._bar.add_task("", total=None)
        self._total, self._done, self._left, self._new = 0, 0, 0, 0
        self._began = time.monotonic()

    def __enter__(self) -> "ProgressView":
        if self._console.is_terminal:
            self._bar.start()
        return self

    def __exit__(self, *raised: object) -> None:
        if self._console.is_terminal:
            self._bar.stop()

    def expect(self, what: str, total: int | None, left: int | None) -> None:
        """Begin to count `what`; of None nobody knows how many there will be."""
        self._total, self._left = total or 0, left or 0
        self._done, self._new, self._began = self._total - self._left, 0, time.monotonic()
        self._bar.reset(self._task, total=total, completed=self._done, description=what)
        if total is not None:
            self._say(f"{total} {what}, {self._done} of them done")

    def began(self, words: str) -> None:
        """Say what is done between cells."""
        self._bar.update(self._task, description=words)
        if not self._console.is_terminal:
            self._say(words)

    def ended(self, words: str, found: Cell | Heads, own: Own) -> None:
        """Count a cell, and say what came of it."""
        self._done += 1
        self._left -= 1
        self._new += 1
        self._bar.update(self._task, completed=self._done, description=words)
        if found.losses is None:
            self._say(f"[{self._done}/{self._total}] {words}: failed: {found.reason}")
        elif not self._console.is_terminal:
            self._say(
                f"[{self._done}/{self._total}] {words}: {_increase(found, own)}, {found.seconds:.1f} s{self._rest}"
            )

    def measured(self, words: str, losses: Sequence[float]) -> None:
        """Count a hybrid, and say its loss."""
        self._done += 1
        self._bar.update(self._task, completed=self._done, description=words)
        if not self._console.is_terminal:
            self._say(f"hybrid {self._done}, {words}: loss {sum(losses) / len(losses):.4f}")

    @property
    def _rest(self) -> str:
        """The time left, by the mean of what has been done since the counting began."""
        a_cell = (time.monotonic() - self._began) / self._new
        return f", {a_cell * self._left / 60:.1f} min left" if self._left else ""

    def _say(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False)


def _increase(found: Cell | Heads, own: Own) -> str:
    base = sum(own.held_out) / len(own.held_out)
    if isinstance(found, Heads):
        means = [sum(losses) / len(losses) - base for losses in found.losses or ()]
        return f"from {min(means):+.4f} to {max(means):+.4f}"
    assert found.losses is not None
    return f"{sum(found.losses) / len(found.losses) - base:+.4f}, error {found.error:.3f}"
