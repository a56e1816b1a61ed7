"""Checks of a command line before any rank starts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from deconattn.checkpoint.format import steps_in
from deconattn.checkpoint.manifest import is_whole, step_of
from deconattn.config.command_line import parse_training_flags
from deconattn.config.deepspeed import deepspeed_config
from deconattn.config.flag_groups import HealingFlags
from deconattn.config.flags import TrainingFlags, model_config
from deconattn.config.run_config import read_run_config
from deconattn.convert.run_flags import model_defaults
from deconattn.convert.warm_start import check_trained_models
from deconattn.data import Manifest
from deconattn.errors import UserError, of_the_disk
from deconattn.extras import require
from deconattn.mixers.plugins import plugin_files
from deconattn.model.streams import Streams
from deconattn.parallel.process_group import from_rank_0
from deconattn.parallel.trial import Trial
from deconattn.train.inputs import data_of
from deconattn.train.run_folder import check_run_folder
from deconattn.train.schedule import check_length, check_steps


def checked_flags(arguments: Sequence[str], world_size: int | None = None) -> TrainingFlags:
    """Parse a training command line and check it, see :func:`parse_training_flags` and :func:`check_flags`."""
    flags = parse_training_flags(arguments, model_defaults)
    check_flags(flags, world_size)
    return flags


@dataclass(frozen=True)
class Checked:
    """What the checks came upon.

    Attributes:
        notes: lines about what is right and worth knowing.
        manifests: of the corpora of `--data` and of the phases, by folder.
    """

    notes: list[str]
    manifests: Mapping[str, Manifest]


def check_on_rank_0(flags: TrainingFlags) -> Mapping[str, Manifest]:
    """Check flags against the disk on rank 0 alone; a collective call.

    Returns:
        On rank 0 the manifests of :class:`Checked`, elsewhere none.

    Raises:
        UserError: on every rank.
    """
    found: dict[str, Manifest] = {}

    def check() -> None:
        try:
            found.update(check_flags(flags, torch.distributed.get_world_size()).manifests)
        except OSError as error:
            if error.filename is None:
                raise
            raise of_the_disk(error, error.filename) from error

    from_rank_0(check)
    return found


def check_flags(flags: TrainingFlags, world_size: int | None = None) -> Checked:
    """Check flags against the disk; touches nothing.

    Args:
        world_size: number of ranks, where it is known already.

    Raises:
        UserError: the first thing that is wrong.
    """
    check_run_folder(flags)
    if flags.run.resume and flags.run.save is not None:
        folders = steps_in(flags.run.save)
        if flags.run.resume_from is not None:
            folders = [folder for folder in folders if folder.name == flags.run.resume_from]
        newest = next((folder for folder in folders if is_whole(folder)), None)
        check_length(flags, 0 if newest is None else step_of(newest))  # rank 0 does so again with what it finds good
        if newest is not None:
            check_steps(read_run_config(newest, "restore it").flags, flags, step_of(newest))
    if flags.engine.zero_quantized_weights:
        _check_quantizer()
    flags.run.check_profile(flags.total_steps, world_size)
    accumulation_steps, notes, manifests = 1, list[str](), dict[str, Manifest]()
    if world_size is not None:
        accumulation_steps = flags.accumulation_steps(flags.engine.data_parallel_size(world_size))
    deepspeed_config(flags, accumulation_steps)
    if flags.run.tensorboard:
        require("tensorboard", "--tensorboard")
    if flags.evaluation.eval_tasks:
        from deconattn.evaluation.in_loop import check_evaluation

        check_evaluation(flags.evaluation)
    if flags.data.data:
        data = data_of(flags.data.data, flags)
        notes, manifests = data.check_tokenizers(), data.manifests
        model = model_config(flags.model, data.vocab_size, flags.plan.longest)
        text = flags.data.fixed_text
        if text is not None and text.is_file() and "text" in Streams.of(model.layer_variants).fixed:
            data.fixed_ids()  # which must be long enough
        for variant in plugin_files(set(model.layer_variants)):
            Trial(variant, model, flags.engine.tp, flags.data.doc_mask).run()
        if flags.healing != HealingFlags():
            notes += check_trained_models(flags, model, data, *_before(flags))
    return Checked(notes, manifests)


def _before(flags: TrainingFlags) -> tuple[dict[str, Any] | None, int]:
    """Return what the run to resume took of a trained model, None where it begins anew, and the steps it has done."""
    if not flags.run.resume or flags.run.save is None:
        return None, 0
    newest = next((folder for folder in steps_in(flags.run.save) if is_whole(folder)), None)
    if newest is None:
        return None, 0
    config = read_run_config(newest, "restore it")
    return {"taken": config.taken, "taken_layers": config.taken_layers}, step_of(newest)


def _check_quantizer() -> None:
    """Refuse to quantise where DeepSpeed cannot: its quantiser is CUDA code, compiled when it is first used."""
    import torch
    from torch.utils.cpp_extension import CUDA_HOME, ROCM_HOME

    if not torch.cuda.is_available():
        raise UserError("--zero-quantized-weights needs GPUs, and there is none: leave it out")
    if not (CUDA_HOME or ROCM_HOME):
        raise UserError(
            "--zero-quantized-weights has DeepSpeed compile its quantiser, and there is no nvcc: "
            "set CUDA_HOME to a CUDA toolkit, or leave the flag out"
        )
