"""A hybrid's fitted weights as a file, and the commands that begin a run with them."""

from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from deconattn import durable
from deconattn.checkpoint.kinds import kind_of
from deconattn.model.streams import Streams
from deconattn.program import command, plugin_flag, quoted
from deconattn.surgery.assignments import Assignment, as_flag
from deconattn.surgery.folder import SearchFolder
from deconattn.surgery.request import Request
from deconattn.surgery.subject import STREAM_BUFFERS, Subject


def write_fitted(folder: SearchFolder, subject: Subject, hybrid: Assignment, path: Path) -> None:
    """Write what a hybrid has and the model has not, under canonical names: fitted mixers and fixed streams."""
    tensors: dict[str, Tensor] = {}
    own = subject.config.layer_variants
    for layer, variant in enumerate(hybrid):
        if variant != own[layer]:
            weights = folder.weights(layer, variant)
            tensors |= {f"model.layers.{layer}.self_attn.{name}": weight for name, weight in weights.items()}
    for stream in Streams.of(hybrid).fixed:
        tensors[STREAM_BUFFERS[stream]] = subject.streams[stream].contiguous()
    durable.write_bytes(path, save(tensors))


def next_commands(model: Path, weights: Path, found: Sequence[str], request: Request) -> list[str]:
    """Return command lines: a run of ours as what can be converted, the hybrid as a run, and its training.

    Args:
        weights: of :func:`write_fitted`.
    """
    data = quoted(request.data) if request.data is not None else "PACKED"
    run, source, plugins = weights.parent / "run", model, plugin_flag(request.plugin)
    lines = []
    if kind_of(model) == "checkpoint":
        source = weights.parent / "exported"
        lines.append(f"{command('export')} {quoted(model)} {quoted(source)} --dtype fp32{plugins}")
    flags = f"--data {data} --seq-len {request.seq_len} --pattern '{as_flag(tuple(found))}'"
    begin = f"{command('convert')} {quoted(source)} {quoted(run)} {flags} --fitted {quoted(weights)}{plugins}"
    return [*lines, begin, f"{command('train')} --save {quoted(run)} --resume{plugins}"]
