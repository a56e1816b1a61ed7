"""Trains the cells of a shard, on several processes at once or in this one.

A worker trains cell after cell, so that its start costs once. What it has to know comes through a pipe, and so does
the end of this process: a worker that finds its pipe closed ends, wherever the signal went.
"""

import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Protocol

import torch

from deconattn.errors import UserError
from deconattn.json_files import reason
from deconattn.mixers.plugins import load_plugins
from deconattn.probing.cell import Stopped, train_cell
from deconattn.probing.folder import Ledger, Outcome
from deconattn.probing.grid import Cell, Group
from deconattn.probing.request import Device, Request

SECONDS_BETWEEN_LOOKS = 0.2
SECONDS_TO_END = 30.0


class View(Protocol):
    """Observer of the runner."""

    def ended(self, cell: Cell, outcome: Outcome) -> None: ...

    def look(self) -> None:
        """Poll; called repeatedly while something runs."""


@dataclass(frozen=True)
class Setting:
    """What a worker trains every cell with."""

    steps: int
    batch_size: int
    plugin: tuple[Path, ...]

    @classmethod
    def of(cls, request: Request) -> "Setting":
        return cls(request.steps, request.batch_size, request.plugin)


def devices(asked: Device, workers: int | None) -> list[str]:
    """Return the device of each worker: by default one a GPU, or without GPUs one a core.

    Raises:
        UserError: there is no GPU, or no worker.
    """
    if workers is not None and workers < 1:
        raise UserError(f"--workers {workers}: give 1 or more")
    gpus = torch.cuda.device_count() if asked != "cpu" else 0
    if asked == "cuda" and not gpus:
        raise UserError("--device cuda: this machine has no GPU that PyTorch can use: give --device cpu")
    if gpus:
        return [f"cuda:{number % gpus}" for number in range(workers or gpus)]
    return ["cpu"] * (workers or len(os.sched_getaffinity(0)))


class Runner:
    """Trains some groups of a grid.

    Args:
        devices: of the workers; with one, this process does the work.
        stop: asked again and again.
    """

    def __init__(
        self,
        ledger: Ledger,
        groups: Sequence[Group],
        setting: Setting,
        devices: Sequence[str],
        view: View,
        stop: Callable[[], bool],
    ) -> None:
        self.ledger, self.groups, self.setting, self.devices = ledger, list(groups), setting, devices
        self.view, self.stop = view, stop

    def run(self) -> None:
        """Work until all cells have been trained or failed, or a stop is asked for."""
        if len(self.devices) == 1:
            self._run_here()
        else:
            self._run_workers()

    def _open(self) -> list[Cell]:
        """Return the cells that can be trained now: task after task, and of each all that share samples together."""
        place = {ladder: number for number, ladder in enumerate(dict.fromkeys(group.ladder for group in self.groups))}
        cells = [cell for cell in self.ledger.cells(self.groups) if self.ledger.outcome(cell) is None]
        return sorted(cells, key=lambda cell: (place[cell.group.ladder], cell.seed))

    def _settle(self, cell: Cell, outcome: Outcome) -> None:
        self.ledger.record(cell, outcome)
        self.view.ended(cell, outcome)

    def _run_here(self) -> None:
        def stop() -> bool:
            self.view.look()
            return self.stop()

        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            while not self.stop() and (cells := self._open()):
                outcome = attempt(cells[0], self.setting, self.devices[0], stop)
                if outcome is not None:
                    self._settle(cells[0], outcome)
        finally:
            torch.set_num_threads(threads)

    def _run_workers(self) -> None:
        workers = [_Worker(self.setting, device) for device in self.devices]
        try:
            while not self.stop():
                self._hand_out(workers)
                busy = [worker for worker in workers if worker.cell is not None]
                if not busy:
                    return
                ready = wait([worker.pipe for worker in busy], SECONDS_BETWEEN_LOOKS)
                for worker in busy:
                    if worker.pipe in ready:
                        self._collect(worker)
                self.view.look()
        finally:
            for worker in workers:
                worker.pipe.close()
            for worker in workers:
                worker.end()

    def _hand_out(self, workers: Sequence["_Worker"]) -> None:
        idle = [worker for worker in workers if worker.cell is None]
        if idle:
            taken = {worker.cell for worker in workers}
            for worker, cell in zip(idle, (cell for cell in self._open() if cell not in taken), strict=False):
                worker.give(cell)

    def _collect(self, worker: "_Worker") -> None:
        cell = worker.cell
        assert cell is not None
        try:
            outcome: Outcome = worker.pipe.recv()
        except (EOFError, OSError):
            outcome = Outcome(None, worker.death())
            worker.start()
        worker.cell = None
        self._settle(cell, outcome)


class _Worker:
    """A process that trains one cell at a time; started when it first gets one."""

    def __init__(self, setting: Setting, device: str) -> None:
        self.setting, self.device = setting, device
        self.cell: Cell | None = None
        self.start()

    def start(self) -> None:
        context = multiprocessing.get_context("spawn")  # forked ones would hold each other's pipes open
        self.pipe, theirs = context.Pipe()
        self._process: BaseProcess = context.Process(target=_work, args=(theirs, self.setting, self.device))
        # A terminal sends these to every process, and the pipe says when to end: a worker is born deaf to them.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()

    def give(self, cell: Cell) -> None:
        with suppress(OSError):  # it has died, which is seen when its answer is read
            self.pipe.send(cell)
        self.cell = cell

    def death(self) -> str:
        """Say how the process ended."""
        self._process.join(SECONDS_TO_END)
        code = self._process.exitcode
        if code is not None and code < 0:
            return f"its process was ended by {signal.Signals(-code).name}"
        return f"its process ended with exit code {code}"

    def end(self) -> None:
        """Wait for the process, whose pipe has been closed."""
        self._process.join(SECONDS_TO_END)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def _work(pipe: Connection, setting: Setting, device: str) -> None:
    torch.set_num_threads(1)
    load_plugins(setting.plugin)
    with suppress(EOFError, OSError):
        while True:
            outcome = attempt(pipe.recv(), setting, device, pipe.poll)
            if outcome is None:
                return
            pipe.send(outcome)


def attempt(cell: Cell, setting: Setting, device: str, stop: Callable[[], bool]) -> Outcome | None:
    """Train a cell; None: it was stopped."""
    try:
        return Outcome(train_cell(cell, setting.steps, setting.batch_size, torch.device(device), stop))
    except Stopped:
        return None
    except Exception as error:  # whatever a mixer or a task of somebody else's does: it is told with the results
        return Outcome(None, f"{type(error).__name__}: {reason(error)}")
