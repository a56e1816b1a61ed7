"""Progress of all jobs: a live table on a terminal, plain lines elsewhere."""

import time
from collections.abc import Sequence

from rich.live import Live
from rich.table import Table
from rich.text import Text

from deconattn.progress import error_console
from deconattn.reproduction.folder import ReproductionFolder
from deconattn.reproduction.jobs import training_progress
from deconattn.reproduction.plans import Kind, PlannedJob

NOTHING = "\N{EN DASH}"

KINDS: dict[Kind, str] = {
    "train": "training",
    "choose": "rate",
    "evaluate": "benchmarks",
    "skip": "without variant layers",
    "contexts": "context lengths",
    "analyze": "indicators",
}
SECONDS_BETWEEN_TABLES, SECONDS_BETWEEN_LINES = 0.5, 30.0


class ProgressView:
    """A view of the jobs of a :class:`~deconattn.reproduction.runner.Runner`.

    The table is drawn in the caller's thread: a process with one thread can start children safely.
    """

    def __init__(self, folder: ReproductionFolder, jobs: Sequence[PlannedJob]) -> None:
        self.folder, self.jobs = folder, jobs
        self._console = error_console()
        self._running: list[PlannedJob] = []
        self._waiting = ""
        self._last = 0.0
        self._live = Live(console=self._console, auto_refresh=False) if self._console.is_terminal else None

    def __enter__(self) -> "ProgressView":
        if self._live:
            self._live.start()
        else:
            done = sum(self.folder.result(job) is not None for job in self.jobs)
            self._say(f"{len(self.jobs)} jobs, {done} of them done")
        return self

    def __exit__(self, *raised: object) -> None:
        if self._live:
            self._live.update(self.table(), refresh=True)
            self._live.stop()

    def started(self, job: PlannedJob) -> None:
        self._running.append(job)
        self._waiting, self._last = "", 0.0
        if not self._live:
            self._say(f"{self._place(job)} {job.name}: started, log {self.folder.log(job)}")
            self._last = time.monotonic()
        self.look()

    def ended(self, job: PlannedJob) -> None:
        if job in self._running:
            self._running.remove(job)
        self._last = 0.0
        if self._live:
            self.look()
        else:
            self._say(f"{self._place(job)} {job.name}: {self._state(job).plain}")

    def waiting(self, job: PlannedJob, on: str) -> None:
        text = f"{job.name}: waiting for {on}"
        if text != self._waiting and not self._live:
            self._say(text)
        self._waiting = text

    def look(self) -> None:
        """Draw the table again, or write a line, when it is time."""
        now = time.monotonic()
        if now - self._last < (SECONDS_BETWEEN_TABLES if self._live else SECONDS_BETWEEN_LINES):
            return
        self._last = now
        if self._live:
            self._live.update(self.table(), refresh=True)
        else:
            for job in self._running:
                if words := self._far(job):
                    self._say(f"{self._place(job)} {job.name}: {words}")

    def table(self) -> Table:
        """A row a run, a column a kind of job."""
        kinds = [kind for kind in KINDS if any(job.kind == kind for job in self.jobs)]
        table = Table(title_justify="left", caption=Text(self._waiting), caption_justify="left")
        for heading in ("run", *(KINDS[kind] for kind in kinds)):
            table.add_column(heading, overflow="fold")
        for run in dict.fromkeys(job.run for job in self.jobs):
            ours = {job.kind: job for job in self.jobs if job.run == run}
            table.add_row(run.name, *(self._state(ours[kind]) if kind in ours else Text("") for kind in kinds))
        return table

    def _state(self, job: PlannedJob) -> Text:
        if self.folder.result(job) is not None:
            return Text("done" if job.kind != "choose" else f"{self.folder.rate(job.run):g}", "green")
        if (failure := self.folder.failure(job)) is not None:
            return Text(
                f"failed: {failure.get('reason')}{f', see {log}' if (log := failure.get('log')) else ''}", "red"
            )
        if job in self._running:
            return Text(self._far(job) or "running", "bold")
        if not self.folder.possible(job):
            return Text("not possible", "red")
        return Text(self._far(job) or NOTHING, "dim")

    def _far(self, job: PlannedJob) -> str:
        return training_progress(self.folder.output(job)) if job.kind == "train" else ""

    def _place(self, job: PlannedJob) -> str:
        return f"[{self.jobs.index(job) + 1}/{len(self.jobs)}]"

    def _say(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False)
