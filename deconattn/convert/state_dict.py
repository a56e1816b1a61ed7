"""A checkpoint's canonical state dict as one safetensors file."""

import os
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from deconattn.checkpoint.format import Checkpoint
from deconattn.checkpoint.moments import kinds_of
from deconattn.durable import sync_folder
from deconattn.errors import UserError

SUFFIX = ".safetensors"
PREFIX = "optimizer"


def write_state_dict(checkpoint: Checkpoint, out: Path, optimizer: bool = False) -> int:
    """Write `out`, whole or not at all; the same checkpoint gives the same bytes.

    fp32 parameters and the fixed streams' buffers under Hugging Face names (a tied head is left out, as there).
    `optimizer` adds its moments as `optimizer.exp_avg.NAME` and so on, by torch's names, and the steps that
    it has taken as `optimizer.step` (int64 scalar).

    Returns:
        The number of tensors.

    Raises:
        UserError: `out` exists, is not called .safetensors, or cannot be written.
    """
    if out.suffix != SUFFIX:
        raise UserError(f"{out}: a checkpoint becomes one file, whose name ends in {SUFFIX}: give such a name")
    if os.path.lexists(out):
        raise UserError(f"{out} exists: give another name")
    moments = kinds_of(checkpoint.flags.optimization.optimizer) if optimizer else ()
    checkpoint.check(*moments)
    tensors = checkpoint.weights()
    if optimizer:
        for kind in moments:
            tensors |= {f"{PREFIX}.{kind}.{name}": tensor for name, tensor in checkpoint.tensors(kind)}
        tensors[f"{PREFIX}.step"] = torch.tensor(checkpoint.progress.optimizer_steps)
    partial = out.with_name(f".{out.name}.partial")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        # One metadata entry: safetensors writes several in no fixed order.
        save_file(tensors, partial, metadata={"format": "pt"})
        partial.chmod(0o644)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(out)
        sync_folder(out.parent)
    except (OSError, SafetensorError) as error:  # the latter is what safetensors makes of a full disk
        raise UserError(f"{out} cannot be written ({error}): free space or give another place") from error
    finally:
        partial.unlink(missing_ok=True)
    return len(tensors)
