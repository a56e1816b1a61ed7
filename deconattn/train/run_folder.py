"""The run folder: rank 0 chooses and claims it, and fills it with the demo corpus and `config.json`."""

import dataclasses
import os
import platform
import secrets
import shutil
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from deconattn import durable, locks
from deconattn.checkpoint.format import CHECKPOINTS, Checkpoint, newest_good, read_checkpoint, steps_in
from deconattn.checkpoint.manifest import is_step_name, step_of
from deconattn.config.command_line import to_json
from deconattn.config.flags import TrainingFlags
from deconattn.config.run_config import RUN_CONFIG, CorpusIdentity
from deconattn.data import read_manifest
from deconattn.errors import UserError
from deconattn.layers.config import ModelConfig
from deconattn.mixers.plugins import plugin_code
from deconattn.model.flops import count_parameters
from deconattn.parallel.process_group import from_rank_0
from deconattn.train.metrics import METRICS

BYTES_A_PARAMETER = 12
"""Bytes of a checkpoint per parameter: the fp32 weight and two moments."""
SHARED_SECONDS = 5.0
"""Seconds that a network file system may take to show one machine what another has written."""


def check_run_folder(flags: TrainingFlags) -> None:
    """Refuse a `--save` folder that holds another run.

    Raises:
        UserError: naming the folder and the ways out.
    """
    save, chosen = flags.run.save, flags.run.resume_from
    if save is None:
        return
    try:
        if os.path.lexists(save) and not save.is_dir():
            raise UserError(f"--save {save} is not a folder: give another")
        found = steps_in(save)
        names = [folder.name for folder in found]
        if chosen is not None and chosen not in names:
            held = ", ".join(names) or "no checkpoint"
            raise UserError(f"--resume-from {chosen}: {save} has {held}: give one of its own")
        for name in (METRICS, RUN_CONFIG):
            if os.path.lexists(save / name) and not (save / name).is_file():
                raise UserError(f"{save / name} is no regular file: move it away, or give another --save")
    except OSError as error:  # a folder above it that may not be looked into
        raise UserError(f"--save {save}: {error.strerror}; give another") from error
    if found and not flags.run.resume:
        raise UserError(f"--save {save} already holds a run ({found[0].name}): add --resume, or give another")


def claim_run_folder(flags: TrainingFlags) -> tuple[Path, locks.FolderLock | None]:
    """Make the run folder; a collective call that gives every rank the same path, and rank 0 its lock.

    Raises:
        UserError: it cannot be made, another process trains in it, or another machine does not see it.
    """
    taken: list[locks.FolderLock] = []

    def claim() -> tuple[Path, str]:
        """Return the folder and the name of a file in it."""
        run, token = make_run_folder(flags), f".seen-{secrets.token_hex(4)}"
        try:
            taken.append(locks.FolderLock(run, "training"))
            check_run_folder(flags)  # again: until now it may have been another's
            _remove_leftovers(run)
            (run / token).touch()
        except OSError as error:
            raise UserError(f"--save {run}: {error.strerror}; give a folder that can be written") from error
        return run, token

    token = ""
    try:
        run, token = from_rank_0(claim)  # no collective: what is removed may be large
        _check_shared(run, token)
    except BaseException:
        for lock in taken:
            lock.release()
        raise
    finally:
        if token and torch.distributed.get_rank() == 0:
            (run / token).unlink(missing_ok=True)
    return run, next(iter(taken), None)


def choose_checkpoint(flags: TrainingFlags, run: Path, damaged: Mapping[str, str] | None = None) -> Checkpoint | None:
    """Open the checkpoint to resume from; None where the run was killed before its first one.

    Its tensors are not verified yet: that is shared out over the ranks.

    Args:
        damaged: names of those whose tensors are, with the reasons; they are passed over.

    Raises:
        UserError: it is damaged or must not be read.
    """
    if flags.run.resume_from is not None:
        return read_checkpoint(run / CHECKPOINTS / flags.run.resume_from).with_plugins(flags.model.plugin)
    checkpoint = newest_good(run, (), damaged)
    if checkpoint is None:
        print(f"note: {run} has no checkpoint yet: it begins anew", file=sys.stderr)
        return None
    return checkpoint.with_plugins(flags.model.plugin)


def set_aside(run: Path, step: int) -> None:
    """Move checkpoints after `step`, with a copy of the metrics, to a new folder `set-aside-N` of the run.

    They belong to a training that is not gone on with; what is trained now will have their names.
    """
    newer = [folder for folder in steps_in(run) if step_of(folder) > step]
    if not newer:
        return
    number = 1
    while (aside := run / f"set-aside-{number}").exists():
        number += 1
    aside.mkdir()
    if (run / METRICS).is_file():
        shutil.copy(run / METRICS, aside)
        durable.sync_file(aside / METRICS)
    for folder in newer:
        folder.rename(aside / folder.name)
    durable.sync_folder(aside)
    names = ", ".join(folder.name for folder in newer)
    print(f"note: {names} moved to {aside}, with a copy of {METRICS}, to go on from step-{step}", file=sys.stderr)


def _remove_leftovers(run: Path) -> None:
    """Remove what killed trainings of the run, whose lock this process holds, left unfinished."""
    for pattern in (".seen-*", f".{RUN_CONFIG}.partial", f".{METRICS}.partial"):
        for path in run.glob(pattern):
            path.unlink()
    for folder in (run / CHECKPOINTS).glob(".step-*.partial"):
        if is_step_name(folder.name.removeprefix(".").removesuffix(".partial")):
            shutil.rmtree(folder, ignore_errors=True)


def data_arguments(flags: TrainingFlags, run: Path) -> tuple[str, ...]:
    """Return `--data`, or the demo corpus, packed into the run folder by rank 0; a collective call."""
    if flags.data.data:
        return flags.data.data
    folder = run / "demo-data"
    if torch.distributed.get_rank() == 0:
        try:
            read_manifest(folder)
        except UserError:
            from deconattn.data import pack_demo  # a run with --data needs nothing of packing

            pack_demo(folder)
    torch.distributed.barrier()
    return (str(folder),)


def check_space(run: Path, config: ModelConfig, keep: int) -> None:
    """Raise UserError if the disk cannot hold one more checkpoint than are kept."""
    needed = (keep + 1) * BYTES_A_PARAMETER * count_parameters(config).total
    held = sum(path.stat().st_size for folder in steps_in(run) for path in folder.rglob("*"))
    free = shutil.disk_usage(run).free
    if free + held < needed:
        raise UserError(
            f"--save {run}: {free / 2**30:.1f} GiB free, but {keep} checkpoints and one being written need "
            f"{needed / 2**30:.1f} GiB: free space, lower --keep, or give another folder"
        )


def resolved_config(
    flags: TrainingFlags,
    model: ModelConfig,
    data: Sequence[CorpusIdentity],
    origin: Mapping[str, Any] | None = None,
    phase_data: Mapping[str, Sequence[CorpusIdentity]] | None = None,
) -> dict[str, Any]:
    """Return `config.json` as plain values: flags, model, data identities, schedule, versions and machine.

    Args:
        origin: fields about the model that the weights were converted from, if they were.
        phase_data: identities of phases with data of their own, by the step that each begins at.
    """
    return {
        **(origin or {}),
        "flags": to_json(flags),
        "model": dataclasses.asdict(model),
        "plugin_code": plugin_code(set(model.layer_variants)),
        "data": [dataclasses.asdict(identity) for identity in data],
        "phase_data": {step: [dataclasses.asdict(one) for one in each] for step, each in (phase_data or {}).items()},
        "total_steps": flags.total_steps,
        "warmup_steps": flags.warmup_steps,
        "environment": environment(),
    }


def environment() -> dict[str, str]:
    """Return versions and machine, for the run's configuration."""
    packages = {name: version(name) for name in ("torch", "deepspeed", "transformers")}
    ranks = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    return {"python": sys.version.split()[0], **packages, "device": device, "world_size": str(ranks)}


def make_run_folder(flags: TrainingFlags) -> Path:
    """Make and return the folder of `--save`, or a new folder under runs/.

    Raises:
        UserError: it cannot be made, or holds no run to resume.
    """
    try:
        return _made(flags)
    except OSError as error:
        raise UserError(f"--save {error.filename}: {error.strerror}; give a folder that can be written") from error


def _made(flags: TrainingFlags) -> Path:
    if flags.run.save is not None:
        run = flags.run.save.resolve()
        run.mkdir(parents=True, exist_ok=True)
        if flags.run.resume and not (run / RUN_CONFIG).is_file():
            raise FileNotFoundError(2, "no run to resume", str(run))
        return run
    name = f"{flags.model.size}-{flags.model.variant}-{flags.model.pattern}".replace(":", "to").replace("*", "x")
    name = name.replace("[", "").replace("]", "")  # a shell's wildcards
    number = 1
    while True:
        run = (Path("runs") / (name if number == 1 else f"{name}-{number}")).resolve()
        try:
            run.mkdir(parents=True)
        except FileExistsError:
            number += 1
        else:
            return run


def _check_shared(run: Path, token: str) -> None:
    """Check that every rank sees the file that rank 0 made; a collective call."""
    deadline = time.monotonic() + SHARED_SECONDS
    while not (run / token).exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    seen: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(seen, (socket.gethostname(), (run / token).exists()))
    for rank, (host, sees) in enumerate(seen):
        if not sees:
            raise UserError(
                f"--save {run}: {host} (rank {rank}) does not see what {seen[0][0]} (rank 0) writes there: "
                "give a folder on a file system that all machines share"
            )
