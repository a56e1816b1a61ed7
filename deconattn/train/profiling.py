"""Profiles of chosen steps: a trace of PyTorch's profiler and, on a GPU, a history of its memory, a file each a rank.

The trace opens in Perfetto (ui.perfetto.dev), the history at pytorch.org/memory_viz.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, record_function

PROFILE = "profile"
HISTORY_ENTRIES = 1_000_000
"""Allocations and releases that a history of memory holds, the last ones."""


class StepProfiler:
    """Profiler of a range of steps, on some ranks; the others run through it for nothing.

    Args:
        run: the run folder; files go to its folder `profile`.
        steps: as `metrics.jsonl` counts them; those before the step that a run goes on from are passed over.
        ranks: that write files.
        rank: this one.
    """

    def __init__(self, run: Path, steps: range, ranks: Sequence[int], rank: int) -> None:
        self.steps, self._ranks, self._rank = steps, tuple(ranks), rank
        self._folder = run / PROFILE
        self._running: profile | None = None
        self._first = 0

    def plan(self, done: int) -> str | None:
        """What will be profiled, in a line, of a run that has done so many steps; None where nothing was asked for."""
        if not self.steps:
            return None
        asked = f"profile: steps {self.steps[0]} to {self.steps[-1]}"
        if self.steps[-1] <= done:
            return f"{asked} are behind step {done}, where this training begins: none is profiled"
        ranks = ", ".join(map(str, sorted(set(self._ranks))))
        memory = "with" if torch.cuda.is_available() else "without (there is no GPU)"
        return f"{asked} of rank {ranks} to {self._folder}, {memory} a history of memory"

    @contextmanager
    def step(self, step: int) -> Iterator[None]:
        """Profile the step inside the block, if it is one to profile; the last of them writes the files."""
        if step not in self.steps or self._rank not in self._ranks:
            yield
            return
        if self._running is None:
            self._start(step)
        try:
            with record_function(f"step {step}"):
                yield
        except torch.OutOfMemoryError:  # what the history is wanted for
            self.close(step)
            raise
        except BaseException:
            self._stop()
            raise
        if step == self.steps[-1]:
            self.close(step)

    def close(self, step: int) -> None:
        """Write what was profiled up to a step, after which there is no more."""
        running = self._running
        if running is None:
            return
        name = f"rank-{self._rank}-steps-{self._first}-{step}"
        try:
            if torch.cuda.is_available():
                torch.cuda.memory._dump_snapshot(str(self._folder / f"{name}-memory.pickle"))
            self._stop()
            running.export_chrome_trace(str(self._folder / f"{name}.json.gz"))
        except (OSError, RuntimeError) as error:  # training matters more
            self._stop()
            print(f"warning: rank {self._rank}: no profile in {self._folder}: {error}", file=sys.stderr, flush=True)

    def _start(self, step: int) -> None:
        self._first = step
        try:
            self._folder.mkdir(exist_ok=True)
        except OSError as error:
            print(f"warning: rank {self._rank}: no profile in {self._folder}: {error}", file=sys.stderr, flush=True)
            self._ranks = ()
            return
        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
            torch.cuda.memory._record_memory_history(max_entries=HISTORY_ENTRIES)
        self._running = profile(activities=activities, record_shapes=True)
        self._running.start()

    def _stop(self) -> None:
        if self._running is None:
            return
        self._running.stop()
        self._running = None
        if torch.cuda.is_available():
            torch.cuda.memory._record_memory_history(enabled=None)
