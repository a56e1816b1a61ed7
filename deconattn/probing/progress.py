"""Progress of a grid: a bar on a terminal, a line a model elsewhere."""

import time
from collections.abc import Callable

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from deconattn.probing.folder import Outcome
from deconattn.probing.grid import Cell
from deconattn.progress import error_console

SECONDS_BETWEEN_RESULTS = 10.0


class ProgressView:
    """A view of the cells of a :class:`~deconattn.probing.runner.Runner`.

    Args:
        total: cells in all.
        done: those that were there before.
        show: writes the results and the page; called when there are new ones, not too often.
    """

    def __init__(self, total: int, done: int, show: Callable[[], object]) -> None:
        self._total, self._done, self._show = total, done, show
        self._shown, self._new = time.monotonic(), False
        self._console = error_console()
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
        self._bar = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=self._console)
        self._task = self._bar.add_task("models", total=total, completed=done)

    def __enter__(self) -> "ProgressView":
        if self._console.is_terminal:
            self._bar.start()
        else:
            self._say(f"{self._total} models, {self._done} of them done")
        return self

    def __exit__(self, *raised: object) -> None:
        if self._console.is_terminal:
            self._bar.stop()

    def ended(self, cell: Cell, outcome: Outcome) -> None:
        self._done += 1
        self._new = True
        self._bar.update(self._task, completed=self._done, description=cell.name)
        if outcome.trained is None:
            self._say(f"[{self._done}/{self._total}] {cell.name}: failed: {outcome.reason}")
        elif not self._console.is_terminal:
            found = outcome.trained
            told = " ".join(f"{measure.accuracy:.2f}" for measure in found.measures)
            self._say(f"[{self._done}/{self._total}] {cell.name}: {told}, {found.steps} steps, {found.seconds:.1f} s")
        self.look()

    def look(self) -> None:
        """Write the results, when it is time and there are new ones."""
        if self._new and time.monotonic() - self._shown > SECONDS_BETWEEN_RESULTS:
            self._show()
            self._shown, self._new = time.monotonic(), False

    def _say(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False)
