"""Saving: every rank writes its slices, in the background where asked, and rank 0 seals what all have written.

The ranks agree through the store that they met at, not by a collective: a disk may take as long as it likes, and
training goes on beside it. A step folder is renamed to its name only when each rank's file is on the disk.
"""

import errno
import json
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any
from zlib import crc32

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import distributed_c10d

from deconattn import durable
from deconattn.checkpoint.format import CHECKPOINTS, flat, seal, steps_in
from deconattn.checkpoint.in_use import delete, unfinished
from deconattn.checkpoint.manifest import Progress, is_whole, step_of
from deconattn.checkpoint.slice_file import NAME, Slice, part_of_shard, write_slices
from deconattn.config.run_config import RUN_CONFIG
from deconattn.errors import UserError
from deconattn.json_files import reason
from deconattn.layers.shards import buffer_shards
from deconattn.parallel.agreement import wait_for_key
from deconattn.train.engine import Engine
from deconattn.train.zero_state import tensor_copies

PAUSES = (1.0, 5.0, 15.0)
"""Seconds before each further attempt at what a disk has refused."""
PASSING = (
    errno.EIO,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.ESTALE,
    errno.ETIMEDOUT,
    errno.EAGAIN,
    errno.EBUSY,
    errno.ENFILE,
    errno.EMFILE,
)
"""Errors that may be gone at the next attempt."""
LEAST = 2**13
"""Elements below which a tensor is not shared out further among the ranks that hold it: 32 KiB."""
_saves = count()


@dataclass(frozen=True)
class GivenUp:
    """A save that was given up: its step, and the reason in one line."""

    step: int
    reason: str


class Saver:
    """Writer of one run's checkpoints; made and called on every rank alike.

    Args:
        config: the run's resolved configuration.
        write_tokenizer: writes the corpus's tokenizer into a folder.
        keep: how many checkpoints stay, the newest.
        keep_every: those of every so many steps stay, too; 0 keeps none.
        background: copy to CPU memory and write from there while training goes on.
        before_seal: called on rank 0 when all has been written, and before it counts: it may raise OSError.
    """

    def __init__(
        self,
        engine: Engine,
        run: Path,
        config: dict[str, Any],
        write_tokenizer: Callable[[Path], object],
        keep: int,
        keep_every: int = 0,
        background: bool = False,
        before_seal: Callable[[], object] = lambda: None,
    ) -> None:
        self._engine, self._run, self._config = engine, run, config
        self._write_tokenizer, self._before_seal = write_tokenizer, before_seal
        self._keep, self._keep_every, self._background = keep, keep_every, background
        # A connection of its own: what another thread waits for at the store must not keep a checkpoint waiting.
        self._store: Any = distributed_c10d._get_default_store().clone()  # type: ignore[attr-defined]
        self._copies: dict[tuple[str, str], Tensor] = {}
        self._thread: threading.Thread | None = None
        self._step, self._key = -1, ""
        self._untold: GivenUp | None = None

    def begin(self, progress: Progress) -> Path:
        """Begin to save the state that the engine is in, once what was begun before has ended.

        Returns:
            The folder that it will be.
        """
        self.wait()
        slices = list(own_slices(self._engine))
        if self._background:
            slices = self._all_copied(slices)
            if self._engine.device.type == "cuda":
                torch.cuda.synchronize()  # the copies are on their way
        self._step, self._key = progress.step, f"deconattn-save-{next(_saves)}"
        folder = self._run / CHECKPOINTS / f"step-{progress.step}"
        work = (folder, progress, slices)
        if self._background:
            self._thread = threading.Thread(target=self._write, args=work, name="checkpoint", daemon=True)
            self._thread.start()
        else:
            self._write(*work)
        return folder

    def wait(self) -> GivenUp | None:
        """Wait until the last save has ended on all ranks, however long that takes.

        Returns:
            Why it was given up; None if it is good, or there was none.
        """
        if not self._key:
            return None
        wait_for_key(self._store, f"{self._key}-verdict")
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        verdict = self._store.get(f"{self._key}-verdict").decode()
        return GivenUp(self._step, verdict) if verdict else None

    def settle(self, seconds: float) -> None:
        """Give what is being saved this long to end, when the run ends in an error; says nothing."""
        if self._thread is not None:
            self._thread.join(seconds)

    def given_up(self) -> GivenUp | None:
        """Return, once and on rank 0 alone, the save that was given up since this was last asked; waits for nothing."""
        untold, self._untold = self._untold, None
        return untold

    def _all_copied(self, slices: list[Slice]) -> list[Slice]:
        """Copy to CPU memory; where there is not enough, say so, and save in the foreground from now on."""
        try:
            return [replace(piece, values=self._copied(piece)) for piece in slices]
        except RuntimeError as error:
            self._copies, self._background = {}, False
            line = f"warning: rank {dist.get_rank()}: no CPU memory for checkpoints' copies ({reason(error)}): "
            print(f"{line}it saves as by --save-mode sync", file=sys.stderr, flush=True)
            return slices

    def _copied(self, piece: Slice) -> dict[str, Tensor]:
        """Copy values to CPU memory that is used again by the next save."""
        for kind, values in piece.values.items():
            copy = self._copies.get((piece.name, kind))
            if copy is None:
                pinned = values.device.type == "cuda"
                copy = torch.empty(values.shape, dtype=values.dtype, pin_memory=pinned)
                self._copies[piece.name, kind] = copy
            copy.copy_(values, non_blocking=True)
        return {kind: self._copies[piece.name, kind] for kind in piece.values}

    def _write(self, folder: Path, progress: Progress, slices: list[Slice]) -> None:
        """Write this rank's file and tell; on rank 0 seal the folder once all have told."""
        with suppress(dist.DistError):  # the store, which rank 0 keeps, is gone: so is this run
            self._written(folder, progress, slices)

    def _written(self, folder: Path, progress: Progress, slices: list[Slice]) -> None:
        partial, key, rank = unfinished(folder), self._key, dist.get_rank()
        if rank:
            wait_for_key(self._store, f"{key}-folder")
            if self._store.get(f"{key}-folder"):
                report = _attempt(lambda: _write_file(partial, rank, slices))
                self._store.set(f"{key}-{rank}", report)
                self._store.add(f"{key}-told", 1)
            return
        error = json.loads(_attempt(lambda: _empty_folder(partial))).get("error", "")
        self._store.set(f"{key}-folder", "" if error else "there")
        if not error:
            reports = [_attempt(lambda: _write_file(partial, rank, slices)), *self._reports(key)]
            error = self._sealed(reports, partial, folder, progress)
        if error:
            shutil.rmtree(partial, ignore_errors=True)
            self._untold = GivenUp(progress.step, error)
        else:
            self._delete_old(progress.step)
        self._store.set(f"{key}-verdict", error)

    def _delete_old(self, step: int) -> None:
        try:
            for old in outdated(self._run, step, self._keep, self._keep_every):
                delete(old)  # unless a command reads it: then after the next save
        except (OSError, UserError) as error:
            print(f"warning: older checkpoints stay: {_said(error)}", file=sys.stderr, flush=True)

    def _reports(self, key: str) -> list[str]:
        """Wait for what the other ranks say."""
        others, pause = dist.get_world_size() - 1, 0.005
        while self._store.add(f"{key}-told", 0) < others:
            time.sleep(pause)
            pause = min(0.5, 1.5 * pause)
        reports = []
        for rank in range(1, others + 1):
            reports.append(self._store.get(f"{key}-{rank}").decode())
            self._store.delete_key(f"{key}-{rank}")
        return reports

    def _sealed(self, reports: list[str], partial: Path, folder: Path, progress: Progress) -> str:
        """Make a checkpoint of what was written; returns why it could not be, or nothing."""
        written: dict[str, Any] = {}
        for rank, report in enumerate(map(json.loads, reports)):
            if "error" in report:
                return f"rank {rank}: {report['error']}" if len(reports) > 1 else str(report["error"])
            written |= report["files"]

        def finish() -> dict[str, Any]:
            self._before_seal()
            seal(partial, progress, self._config, self._write_tokenizer, written)
            durable.sync_tree(partial / "tokenizer")
            durable.sync_folder(partial)
            durable.put_in_place(partial, folder)  # in place of a damaged one, which resuming has passed over
            return {}

        return str(json.loads(_attempt(finish)).get("error", ""))


def own_slices(engine: Engine) -> Iterator[Slice]:
    """Yield the slices that this rank writes: what it holds, and of what others hold as well, its share."""
    for held in engine.state.held():
        first, last = own_share(held.local, held.copies, held.copy, held.name)
        first, last = max(first, held.first), min(last, held.last)
        if first < last and not held.is_tied_copy:
            values = {kind: value[first - held.first : last - held.first] for kind, value in held.values.items()}
            yield Slice(held.name, held.shape, part_of_shard(held.shard), first, values)
    shards, topology = buffer_shards(engine.model), engine.topology
    for name, buffer in engine.model.named_buffers():
        shard = shards.get(name)
        copies, copy = tensor_copies(shard, topology)
        copies, copy = copies * topology.zero_size, copy * topology.zero_size + topology.zero_rank
        first, last = own_share(buffer.numel(), copies, copy, name)
        if first < last:
            # bf16 training keeps the fixed stream in bf16, where fp32 holds it exactly
            values = {"weights": flat(buffer)[first:last]}
            shape = tuple(buffer.shape) if shard is None else shard.shape
            yield Slice(name, shape, part_of_shard(shard), first, values)


def own_share(elements: int, copies: int, copy: int, name: str) -> tuple[int, int]:
    """Return the run that one of several ranks writes of a tensor that all of them hold: none less than LEAST.

    The first share falls to another rank for another name.
    """
    shares = min(copies, -(-elements // LEAST))
    share = (copy + crc32(name.encode())) % copies
    return (elements * share // shares, elements * (share + 1) // shares) if share < shares else (0, 0)


def outdated(run: Path, step: int, keep: int, keep_every: int) -> list[Path]:
    """The checkpoints that are deleted after step `step` has been saved.

    Whole ones alone count: `keep` of them stay, that of `step` among them, and every `keep_every`-th step. What is
    newer than `step` was passed over, as damaged, when the run was resumed: it stays as it is.
    """
    older = [folder for folder in steps_in(run) if step_of(folder) < step]
    whole = [folder for folder in older if is_whole(folder)]
    if len(whole) < keep:
        return []
    first_kept = older.index(whole[keep - 2]) if keep > 1 else -1
    return [folder for folder in older[first_kept + 1 :] if not keep_every or step_of(folder) % keep_every]


def _attempt(work: Callable[[], dict[str, Any]]) -> str:
    """Do work on a disk, a few times where it may be refused for a while; its result, or its `error`, as JSON."""
    for pause in (*PAUSES, None):
        try:
            return json.dumps(work())
        except Exception as error:
            cause = error.__cause__ if isinstance(error, UserError) else error
            passing = isinstance(cause, OSError) and cause.errno in PASSING
            if not passing or pause is None:
                return json.dumps({"error": _said(error)})
            line = f"warning: rank {dist.get_rank()}: {_said(error)}; trying again in {pause:g} s"
            print(line, file=sys.stderr, flush=True)
            time.sleep(pause)
    raise AssertionError


def _said(error: Exception) -> str:
    place = f"{error.filename}: " if isinstance(error, OSError) and error.filename else ""
    kind = "" if isinstance(error, OSError | UserError) else f"{type(error).__name__}: "
    return f"{kind}{place}{reason(error)}"


def _write_file(folder: Path, rank: int, slices: list[Slice]) -> dict[str, Any]:
    if not slices:
        return {"files": {}}
    name = NAME.format(rank)
    return {"files": {name: write_slices(folder / name, slices)}}


def _empty_folder(folder: Path) -> dict[str, Any]:
    if not (folder.parents[1] / RUN_CONFIG).is_file():
        raise FileNotFoundError(errno.ENOENT, "the run folder has vanished", str(folder.parents[1]))
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(exist_ok=True)
    folder.mkdir()
    return {}
