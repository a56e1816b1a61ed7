"""Convert: RUN_OR_CHECKPOINT OUT.safetensors, MODEL OUT_RUN --data PACKED FLAGS, or MODEL.gguf OUT."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, get_args

import tyro

from deconattn.cli import asks_for_completion, complaints_in_one_line, completed_name
from deconattn.errors import UserError
from deconattn.program import command, plugin_flag, quoted


@dataclass(frozen=True)
class Arguments:
    """Convert a checkpoint into one safetensors file, a Hugging Face model or a GGUF file into a run.

    `convert RUN_OR_CHECKPOINT OUT.safetensors` writes the canonical state dict: fp32, Hugging Face names.

    `convert MODEL OUT_RUN --data PACKED [any flag of a training]` begins a run with the weights of a model of Llama's
    kind (Llama, Mistral, SmolLM, Qwen2, Qwen3), or of an export of ours. Dimensions are the model's; --variant and
    --pattern choose the layers, which take the tensors that they share with it. Train with --save OUT_RUN --resume.

    `convert MODEL.gguf OUT` writes a GGUF file as a Hugging Face folder, in fp32.
    """

    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """A run folder (its newest good checkpoint), one of its step-N folders, a Hugging Face folder or a GGUF file."""
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """The file, run folder or Hugging Face folder to write."""
    optimizer: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Add a checkpoint's moments and optimiser step, as optimizer.exp_avg.NAME and so on. (With a name, such as
    --optimizer muon, it is the flag of a training.)"""
    fitted: Path | None = None
    """Weights of a hybrid that a search has found (found.safetensors); they take the place of others."""
    plugin: tuple[Path, ...] = ()
    """Python files that register the model's third-party variants. A checkpoint's tensors need none."""


def main(words: Sequence[str]) -> None:
    """Find out what is to be converted, do it, and say what became of it."""
    informs = {"-h", "--help"} & set(words) or asks_for_completion(words)
    if not informs and any(word.startswith("-") for word in words[:2]):
        raise UserError(f"{words[0]}: SOURCE and OUT come first, then the flags")
    words, training = (words, []) if informs else _without_a_trainings(words)
    with complaints_in_one_line():
        arguments, others = tyro.cli(
            Arguments, prog=completed_name(command("convert"), words), args=words, return_unknown_args=True
        )
    others += training
    from deconattn.checkpoint.gguf_source import is_gguf
    from deconattn.checkpoint.kinds import kind_of

    if is_gguf(arguments.source):
        _convert_gguf(arguments, others)
        return
    if kind_of(arguments.source) == "checkpoint":
        from deconattn.checkpoint.format import open_checkpoint
        from deconattn.convert.state_dict import write_state_dict

        if arguments.fitted is not None:
            raise UserError("--fitted: a checkpoint has weights of its own; leave it out")
        if others:
            raise UserError(f"{others[0]}: a checkpoint takes no flag but --optimizer; leave it out")
        checkpoint = open_checkpoint(arguments.source)
        tensors = write_state_dict(checkpoint, arguments.out, arguments.optimizer)
        print(f"step {checkpoint.step} of {checkpoint.folder} -> {arguments.out} ({tensors} tensors, fp32)")
        return
    from deconattn.convert.new_run import write_run

    if arguments.optimizer:
        raise UserError("--optimizer: a Hugging Face folder holds no moments; leave it out")
    print(write_run(arguments.source, arguments.out, [*others, *_plugins(arguments)], arguments.fitted))
    _say_how_to_train(arguments)


def _convert_gguf(arguments: Arguments, others: Sequence[str]) -> None:
    from deconattn.convert.gguf import write_hf, write_run

    if arguments.optimizer:
        raise UserError("--optimizer: a GGUF file holds no moments; leave it out")
    if not others and not arguments.plugin and arguments.fitted is None:
        print(write_hf(arguments.source, arguments.out))
        return
    print(write_run(arguments.source, arguments.out, [*others, *_plugins(arguments)], arguments.fitted))
    _say_how_to_train(arguments)


def _plugins(arguments: Arguments) -> list[str]:
    return ["--plugin", *map(str, arguments.plugin)] if arguments.plugin else []


def _say_how_to_train(arguments: Arguments) -> None:
    print(f"train: {command('train')} --save {quoted(arguments.out)} --resume{plugin_flag(arguments.plugin)}")


def _without_a_trainings(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Take out a training's `--optimizer NAME`; without a name it is a flag of ours."""
    from deconattn.config.flag_groups import Optimizer

    given = list(words)
    for index, word in enumerate(given):
        named = word == "--optimizer" and given[index + 1 : index + 2] and given[index + 1] in get_args(Optimizer)
        if named or word.startswith("--optimizer="):
            end = index + 2 if named else index + 1
            return given[:index] + given[end:], given[index:end]
    return given, []
