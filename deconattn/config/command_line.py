"""Parser from a command line to :class:`~deconattn.config.flags.TrainingFlags`, fresh or of a run to resume."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from deconattn.cli import asks_for_completion, complaints_in_one_line, parse
from deconattn.config.flag_file import ConfigFile, read_config_file
from deconattn.config.flags import TrainingFlags
from deconattn.config.healing import check_folder
from deconattn.config.presets import size_defaults
from deconattn.config.probe_source import is_probe, named_task
from deconattn.config.renamed import renamed_words
from deconattn.config.run_config import RUN_CONFIG, read_run_config
from deconattn.errors import UserError
from deconattn.json_files import reason
from deconattn.program import command


@dataclass(frozen=True)
class _Decisive:
    """Flags on which other flags' defaults depend; None where they are not given."""

    size: str | None = None
    config: Path | None = None
    resume: bool = False
    resume_from: str | None = None
    save: Path | None = None
    steps: int | None = None
    tokens: int | None = None
    seq_len: int | None = None
    init_from: Path | None = None
    variant: str | None = None
    pattern: str | None = None


def parse_training_flags(
    arguments: Sequence[str], of_model: Callable[[Path], Mapping[str, Any]] | None = None
) -> TrainingFlags:
    """Parse and check: the command line comes before the file of `--config`, and that before the defaults of the size.

    With `--resume` the run's flags stand in the defaults' place.

    Args:
        of_model: returns the fields of `ModelFlags` that describe the model of `--init-from`, defaults then; among
            them the size that comes nearest, and its layers as a pattern; and `original_length`, from which another
            `--rope-scaling` counts. Without it that flag decides nothing.

    Raises:
        UserError: anything wrong with the flags that can be known before a process starts, a run that cannot be
            resumed, or flags that contradict the run.
    """
    arguments = renamed_words(arguments)
    # tyro would answer a request for a shell's completion with the few flags that decide.
    decisive = [] if asks_for_completion(arguments) else arguments
    with complaints_in_one_line():
        first, _ = tyro.cli(_Decisive, args=decisive, return_unknown_args=True, add_help=False)
    file = None if first.config is None else read_config_file(first.config)
    resumes = first.resume or first.resume_from is not None
    saved = saved_flags(_save(first, file)) if resumes else None
    # The plugins of a run are its owner's word, not the user's: what is given stands alone.
    unasked = saved.model.plugin if saved else ()
    defaults, original = (_with(saved, "model", plugin=()), None) if saved else _defaults(first, file, of_model)
    owner = _save(first, file)
    if file and file.of_a_run and file.values.get("plugin"):
        unasked, owner = tuple(Path(str(plugin)) for plugin in file.values["plugin"]), file.path
        file = dataclasses.replace(file, values={name: file.values[name] for name in file.values if name != "plugin"})
    flags = parse(TrainingFlags, arguments, default=file.on(defaults) if file else defaults, program=command("train"))
    # Only now, since --help has left: PyTorch takes a second to import.
    flags = _with(_with_precision(_with_length(flags, first, file)), "run", resume=resumes)
    if original is not None and flags.model.rope_scaling != defaults.model.rope_scaling:
        from deconattn.layers.rope_scaling import with_original

        flags = _with(flags, "model", rope_scaling=with_original(flags.model.rope_scaling, original))
    if unasked and not flags.model.plugin:
        from deconattn.mixers.plugins import check_asked

        check_asked(unasked, flags.run.trust_plugins, str(owner))
        flags = _with(flags, "model", plugin=unasked)
    if first.seq_len is None and not (file and "seq_len" in file.values):
        flags = _with_task_length(flags)
    if saved:
        check_same_run(saved, flags, f"{first.config} and the flags" if file else "the flags")
    text = flags.data.fixed_text
    if saved and text and text.resolve() != saved.data.fixed_text and not text.is_file():
        raise UserError(f"no such file: {text}")
    flags.check()
    return flags


def _defaults(
    first: _Decisive, file: ConfigFile | None, of_model: Callable[[Path], Mapping[str, Any]] | None
) -> tuple[TrainingFlags, int | None]:
    """Return the size's defaults, or with `--init-from` those of its model and its length before any scaling."""
    in_file = file.values if file else {}
    start = first.init_from or (Path(str(in_file["init_from"])) if in_file.get("init_from") else None)
    if start is None or of_model is None:
        return size_defaults(_size(first, file)), None
    check_folder("--init-from", start)
    values = dict(of_model(start))
    if first.variant or first.pattern or in_file.get("variant") or in_file.get("pattern"):
        values.pop("pattern")
    nearest, original = values.pop("size"), values.pop("original_length")
    named = first.size or in_file.get("size")
    return _with(size_defaults(_size(first, file) if named else nearest), "model", **values), original


def _size(first: _Decisive, file: ConfigFile | None) -> str:
    of_file = file.values.get("size") if file else None
    if file and first.size and of_file not in (None, first.size) and "hidden_size" in file.values:
        raise UserError(
            f"--size {first.size}: {file.path} has the dimensions of size {of_file} one by one, and they would stay: "
            "leave --size out, or give a file without them"
        )
    return first.size or str(of_file or TrainingFlags().model.size)


def _save(first: _Decisive, file: ConfigFile | None) -> Path | None:
    of_file = file.values.get("save") if file else None
    return first.save or (Path(str(of_file)) if of_file else None)


def _with_length(flags: TrainingFlags, first: _Decisive, file: ConfigFile | None) -> TrainingFlags:
    """Let `--steps` or `--tokens`, whichever was given last, say how long the run is: `--tokens` does where it is set.

    Raises:
        UserError: both were given in one place.
    """
    if first.steps is not None and first.tokens is not None:
        raise UserError("--steps and --tokens both say how long the run is: leave one out")
    of_file = {name for name in ("steps", "tokens") if file and file.values.get(name) is not None}
    if first.steps is None and first.tokens is None and file and not file.of_a_run and len(of_file) == 2:
        raise UserError(f"--config {file.path}: steps and tokens both say how long the run is: leave one out")
    tokens_are_older = first.steps is not None or (first.tokens is None and of_file == {"steps"})
    return _with(flags, "optimization", tokens=None) if tokens_are_older else flags


def _with_task_length(flags: TrainingFlags) -> TrainingFlags:
    """Let the samples of a task, if `--data` names one, say how long a sequence is."""
    plugins = flags.model.plugin
    if plugins and is_probe(flags.data.data) and all(file.is_file() for file in plugins):
        from deconattn.mixers.plugins import load_plugins

        load_plugins(plugins)
    task = named_task(flags.data.data)
    return flags if task is None else _with(flags, "data", seq_len=task.length)


def _with_precision(flags: TrainingFlags) -> TrainingFlags:
    if flags.engine.precision is not None:
        return flags
    import torch

    return _with(flags, "engine", precision="bf16" if torch.cuda.is_available() else "fp32")


def check_same_run(saved: TrainingFlags, given: TrainingFlags, source: str) -> None:
    """Check that flags leave alone what defines a run.

    Args:
        source: what messages call the place where `given` came from, such as "the flags".

    Raises:
        UserError: naming the first flag that they change.
    """
    for name, before, now in _contradictions(saved, given):
        raise UserError(
            f"--resume: the run has {name} {before} but {source} say{'' if source.endswith('s') else 's'} {now}; "
            f"leave {name} out, or start a new run with another --save"
        )


def to_json(flags: TrainingFlags) -> dict[str, Any]:
    """Return plain values, paths made absolute; acts (`--resume`, `--profile`) are no properties of the run."""
    from pydantic import TypeAdapter

    run = dataclasses.replace(flags.run, resume=False, resume_from=None, trust_plugins=False, save=None, config=None)
    run = dataclasses.replace(run, profile=None, profile_ranks=(0,))
    return TypeAdapter(TrainingFlags).dump_python(_absolute(dataclasses.replace(flags, run=run)), mode="json")


def saved_flags(save: Path | None) -> TrainingFlags:
    """Read the flags of the run in folder `save`.

    Raises:
        UserError: no folder, no run in it, or an unreadable configuration.
    """
    if save is None:
        raise UserError("--resume needs --save DIR, the run folder")
    try:
        flags = read_run_config(save, "restore it, every checkpoint has a copy").flags
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"--resume: {save} holds no run ({RUN_CONFIG} is missing); check --save") from None
    except OSError as error:
        raise UserError(f"--resume: cannot read {save / RUN_CONFIG} ({reason(error)}): restore it") from error
    return _with(flags, "run", save=save)


def _contradictions(saved: TrainingFlags, given: TrainingFlags) -> Iterator[tuple[str, Any, Any]]:
    """Yield (flag, before, now) of what defines model, data order or arithmetic and must not change within a run.

    Steps, learning rate, evaluation, ZeRO stage, micro-batch and the like may. The data and the fixed text are compared
    by content.
    """
    saved, given = _absolute(saved), _absolute(given)
    pairs = [
        (saved.model, given.model, [f.name for f in dataclasses.fields(saved.model) if f.name != "plugin"]),
        (saved.data, given.data, ["seq_len", "doc_mask", "packing"]),
        (saved.optimization, given.optimization, ["global_batch_size", "seed", "optimizer"]),
        (saved.engine, given.engine, ["precision"]),
        (saved.healing, given.healing, ["init_from", "freeze", "distill", "distill_temperature"]),
    ]
    for before, now, names in pairs:
        for name in names:
            if getattr(before, name) != getattr(now, name):
                yield "--" + name.replace("_", "-"), getattr(before, name), getattr(now, name)


def _absolute(flags: TrainingFlags) -> TrainingFlags:
    model, data, engine, evaluation, healing = flags.model, flags.data, flags.engine, flags.evaluation, flags.healing
    return dataclasses.replace(
        flags,
        model=dataclasses.replace(model, plugin=tuple(path.resolve() for path in model.plugin)),
        data=dataclasses.replace(
            data,
            data=tuple(_absolute_data(argument) for argument in data.data),
            phase=tuple(tuple(_absolute_word(word) for word in words) for words in data.phase),
            fixed_text=data.fixed_text and data.fixed_text.resolve(),
        ),
        engine=dataclasses.replace(
            engine, deepspeed_config=engine.deepspeed_config and engine.deepspeed_config.resolve()
        ),
        evaluation=dataclasses.replace(
            evaluation, eval_datasets=evaluation.eval_datasets and evaluation.eval_datasets.resolve()
        ),
        healing=dataclasses.replace(
            healing,
            init_from=healing.init_from and healing.init_from.resolve(),
            teacher=healing.teacher and healing.teacher.resolve(),
        ),
    )


def _absolute_data(argument: str) -> str:
    if is_probe([argument]):
        return argument
    folder, colon, weight = argument.partition(":")
    return f"{Path(folder).resolve()}{colon}{weight}"


def _absolute_word(word: str) -> str:
    key, equals, value = word.partition("=")
    return f"{key}{equals}{_absolute_data(value)}" if key == "data" else word


def _with(flags: TrainingFlags, part: str, **changes: Any) -> TrainingFlags:
    return dataclasses.replace(flags, **{part: dataclasses.replace(getattr(flags, part), **changes)})
