"""Collective saving and loading: every rank takes part in gathering, one rank of each pipeline stage writes."""

import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed

from deconattn import durable
from deconattn.checkpoint.format import CHECKPOINTS, Checkpoint, TensorFiles, seal, steps_in
from deconattn.checkpoint.in_use import delete, unfinished
from deconattn.checkpoint.manifest import Progress, describe, is_whole, step_of
from deconattn.checkpoint.moments import kinds_of
from deconattn.config.run_config import RUN_CONFIG
from deconattn.errors import UserError
from deconattn.layers.shards import buffer_shards, shard_of
from deconattn.model.causal_lm import CausalLM
from deconattn.train.engine import Engine


def save_checkpoint(
    engine: Engine,
    run: Path,
    progress: Progress,
    config: dict[str, Any],
    write_tokenizer: Callable[[Path], object],
    keep: int,
    keep_every: int = 0,
) -> Path:
    """Write `RUN/checkpoints/step-N` and delete all but the newest `keep`; a collective call.

    The folder is filled under a temporary name, flushed to the disk and renamed, so that a process that dies
    on the way leaves no folder that could be taken for a checkpoint.

    Raises:
        UserError: on every rank, when it could not be written; the checkpoints before it are untouched.
    """
    folder = run / CHECKPOINTS / f"step-{progress.step}"
    partial_folder = unfinished(folder)
    writer = _Attempt()
    if engine.rank == 0:
        writer(lambda: _empty_folder(partial_folder))
    engine.barrier()
    written: list[Path] = []
    writes = engine.topology.owns_stage
    for kind in engine.state.kinds:
        files = TensorFiles(partial_folder, kind, engine.topology.pp_rank)
        for name, tensor in engine.state.tensors(kind):
            if writes:
                writer(partial(files.add, name, tensor))
        if kind == "weights":
            shards = buffer_shards(engine.model)
            for name, buffer in engine.model.named_buffers():
                # bf16 training keeps the fixed stream in bf16, where fp32 holds it exactly
                value = engine.state.whole(buffer.float() if buffer.is_floating_point() else buffer, shards.get(name))
                if writes:
                    writer(partial(files.add, name, value))
        writer(files.flush)
        written += files.paths
    known = _flush_and_describe(written, writer)
    if engine.rank == 0:
        writer(lambda: _seal(partial_folder, folder, progress, config, write_tokenizer, known))
    _raise_together(engine, writer.error, folder, partial_folder)
    if engine.rank == 0:
        for old in outdated(run, progress.step, keep, keep_every):
            delete(old)  # unless a command reads it: then after the next save
    return folder


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


def load_weights(model: CausalLM, checkpoint: Checkpoint) -> None:
    """Fill this rank's part of a model, before an engine is made of it.

    Raises:
        UserError: the checkpoint is not of this model.
    """
    # What has no fixed stream takes sequences of any length: a phase may have longer ones than the run began with.
    longest = model.config.max_position_embeddings
    if replace(checkpoint.model_config, max_position_embeddings=longest) != model.config:
        raise UserError(f"{checkpoint.folder} is of another model than the flags describe: start a new run")
    checkpoint.check("weights", *kinds_of(checkpoint.flags.optimization.optimizer))
    targets = {**model.canonical_parameters(), **dict(model.named_buffers())}
    shards = buffer_shards(model)
    with torch.no_grad():
        for name, tensor in checkpoint.tensors("weights", targets):
            shard = shard_of(targets[name]) or shards.get(name)
            targets[name].copy_(shard.take(tensor) if shard else tensor)


def load_checkpoint(engine: Engine, checkpoint: Checkpoint) -> None:
    """Load weights and optimiser state, on any topology.

    The model must have got the checkpoint's weights before the engine was made of it, which is how the
    low-precision copies get theirs; here the fp32 masters and the moments follow.
    """
    engine.state.optimizer_steps = checkpoint.progress.optimizer_steps
    parameters = engine.model.canonical_parameters()
    for kind in engine.state.kinds:
        for name, tensor in checkpoint.tensors(kind, parameters):
            engine.state.load(kind, name, tensor)
    engine.barrier()


class _Attempt:
    """Run file operations until one fails; a rank that cannot write must still take part in the gathering."""

    def __init__(self) -> None:
        self.error: Exception | None = None

    def __call__(self, operation: Callable[[], None]) -> None:
        if self.error is None:
            try:
                operation()
            except Exception as error:  # safetensors wraps a full disk in an exception of its own
                self.error = error


def _raise_together(engine: Engine, error: Exception | None, folder: Path, unfinished: Path) -> None:
    failed = torch.tensor([float(error is not None)], device=engine.device)
    torch.distributed.all_reduce(failed)
    if not failed.item():
        return
    if engine.rank == 0:
        shutil.rmtree(unfinished, ignore_errors=True)
    if error is not None:
        print(f"warning: rank {engine.rank}: {type(error).__name__}: {error}", file=sys.stderr)
    reason = str(error) if error is not None else "another rank failed"
    raise UserError(
        f"checkpoint {folder} could not be written ({reason}): free space or check permissions, then --resume"
    )


def _empty_folder(folder: Path) -> None:
    if not (folder.parents[1] / RUN_CONFIG).is_file():
        raise FileNotFoundError(2, "the run folder has vanished", str(folder.parents[1]))
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(exist_ok=True)
    folder.mkdir()


def _flush_and_describe(written: list[Path], writer: _Attempt) -> dict[str, Any]:
    """Flush this rank's files and describe them, on the machine that wrote them; gathered on all ranks."""
    mine: dict[str, Any] = {}

    def flush_and_describe(path: Path) -> None:
        durable.sync_file(path)
        mine[path.name] = describe(path)

    for path in written:
        writer(partial(flush_and_describe, path))
    everybody: list[dict[str, Any]] = [{} for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather_object(everybody, mine)
    return {name: entry for files in everybody for name, entry in files.items()}


def _seal(
    unfinished: Path,
    folder: Path,
    progress: Progress,
    config: dict[str, Any],
    write_tokenizer: Callable[[Path], object],
    known: dict[str, Any],
) -> None:
    seal(unfinished, progress, config, write_tokenizer, known)
    durable.sync_tree(unfinished)
    durable.put_in_place(unfinished, folder)  # in place of a damaged one, which resuming has passed over
