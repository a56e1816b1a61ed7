"""Loading of a checkpoint on any topology: each rank reads what it holds, and no other bytes."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist

from deconattn.checkpoint.format import Checkpoint, pass_over
from deconattn.checkpoint.moments import kinds_of
from deconattn.checkpoint.origins import STREAMS
from deconattn.checkpoint.slice_file import BLOCK, part_of_shard
from deconattn.checkpoint.slices import UnreadableError
from deconattn.config.flags import TrainingFlags
from deconattn.errors import UserError
from deconattn.layers.shards import buffer_shards
from deconattn.model.causal_lm import CausalLM
from deconattn.parallel.agreement import everywhere
from deconattn.parallel.process_group import from_rank_0
from deconattn.train.engine import Engine
from deconattn.train.run_folder import choose_checkpoint


def longer_streams(model: CausalLM, checkpoint: Checkpoint) -> dict[str, tuple[int, int]]:
    """Return the fixed streams of this rank's part of a model that are longer than the checkpoint's: rows of both."""
    tensors = checkpoint.reader.tensors
    lengths = {
        name: (tensors[name].shape[0], len(buffer))
        for name, buffer in model.named_buffers()
        if name in STREAMS and name in tensors
    }
    return {name: (before, now) for name, (before, now) in lengths.items() if before < now}


def load_buffers(model: CausalLM, checkpoint: Checkpoint) -> None:
    """Fill the buffers of this rank's part of a model, of fixed streams as many rows as both have; a collective call.

    Its parameters follow with :func:`load_checkpoint`, once an engine has been made of it.

    Raises:
        UserError: on every rank: the checkpoint is not of this model, or is damaged.
    """
    # A phase may have longer sequences than the run began with.
    longest = model.config.max_position_embeddings
    if replace(checkpoint.model_config, max_position_embeddings=longest) != model.config:
        raise UserError(f"{checkpoint.folder} is of another model than the flags describe: start a new run")

    def load() -> None:
        checkpoint.check("weights", *kinds_of(checkpoint.flags.optimization.optimizer))
        shards = buffer_shards(model)
        for name, buffer in model.named_buffers():
            own, last = buffer, None
            if name in STREAMS:
                own = buffer[: checkpoint.reader.tensors[name].shape[0]]
                last = own.numel()
            values = checkpoint.reader.read("weights", name, part_of_shard(shards.get(name)), last=last)
            own.copy_(values.view(own.shape))

    with torch.no_grad():
        everywhere(load)


def load_checkpoint(engine: Engine, checkpoint: Checkpoint) -> None:
    """Load weights and optimiser state into an engine; a collective call.

    Each rank reads the masters and moments that it holds, a data-parallel rank under ZeRO-0 its share of what all hold.
    The low-precision copies are then made of the masters, as in a step.

    Raises:
        UserError: on every rank: a tensor is missing or damaged.
    """
    engine.state.set_steps(checkpoint.progress.optimizer_steps, checkpoint.progress.frozen_steps)
    ranks = engine.topology.zero_size if engine.stage == 0 else 1
    shared: dict[tuple[str, str], tuple[int, int]] = {}

    def load() -> None:
        reader = checkpoint.reader
        for held in engine.state.held():
            for kind, values in held.values.items():
                entry = reader.tensors.get(held.name)
                if entry is None or kind not in entry.kinds or tuple(entry.shape) != held.shape:
                    raise checkpoint.unfit(kind, held.name)
                first, last = held.first, held.last
                if ranks > 1 and held.local > BLOCK:
                    size = -(-held.local // ranks)
                    first = min(size * engine.topology.zero_rank, held.local)
                    last = min(first + size, held.local)
                    shared[held.name, kind] = (first, last)
                if first < last:
                    read = reader.read(kind, held.name, part_of_shard(held.shard), first, last)
                    values[first - held.first : last - held.first].copy_(read)
        reader.close()

    with torch.no_grad():
        everywhere(load)
        engine.state.spread(shared)


def verified_checkpoint(flags: TrainingFlags, run: Path) -> Checkpoint | None:
    """Return the checkpoint to resume from, on every rank; None where the run was killed before its first one.

    Rank 0 alone chooses it and reads its manifest: ranks that see different folders would train on from different
    steps. All ranks verify its tensors, each a share of the bytes.

    Raises:
        UserError: on every rank: it is damaged, and was asked for, or all are; or it cannot be read.
    """
    damaged: dict[str, str] = {}
    place = dist.get_rank(), dist.get_world_size()
    while True:
        held: list[Checkpoint] = []

        def choose(held: list[Checkpoint] = held) -> Checkpoint | None:
            checkpoint = choose_checkpoint(flags, run, damaged)
            if checkpoint is None:
                return None
            held.append(checkpoint)
            # Slices of many ranks are too much for the store, which every rank asks.
            return replace(checkpoint, manifest=replace(checkpoint.manifest, tensors={}))

        checkpoint = from_rank_0(choose)
        if checkpoint is None:
            return None
        tensors = [held[0].manifest.tensors if held else None]
        dist.broadcast_object_list(tensors, src=0)
        assert tensors[0] is not None
        checkpoint = replace(checkpoint, manifest=replace(checkpoint.manifest, tensors=tensors[0]))
        try:
            everywhere(partial(checkpoint.reader.verify, share=place))
        except UnreadableError:
            raise
        except UserError as error:
            if flags.run.resume_from is not None:
                raise
            damaged[checkpoint.folder.name] = (
                pass_over(checkpoint.folder, error) if dist.get_rank() == 0 else str(error)
            )
        else:
            return checkpoint
