"""Checks of `--init-from` and `--teacher` before any rank starts: they fit the flags, and their tokens the corpora."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deconattn.checkpoint.origins import check_continued_text
from deconattn.checkpoint.tensors import expected_headers
from deconattn.config.flags import TrainingFlags
from deconattn.config.healing import check_folder, needs_teacher
from deconattn.convert.new_run import check_vocabulary
from deconattn.errors import UserError
from deconattn.healing.distillation import check_teacher
from deconattn.healing.freezing import frozen_until, shared_parameters
from deconattn.healing.source import Source, open_source, shared_tensors
from deconattn.layers.config import ModelConfig
from deconattn.model.init import FIXED_TEXT
from deconattn.train.inputs import TrainingData
from deconattn.train.run_data import RunData


def check_trained_models(
    flags: TrainingFlags, config: ModelConfig, data: RunData, before: Mapping[str, Any] | None, reached: int = 0
) -> list[str]:
    """Check that a run can begin with one model and learn from another; of a run's newest checkpoint weights are read.

    Args:
        before: the fields of a run that is gone on with about what it began with; None where it begins.
        reached: steps that it has done.

    Returns:
        A remark where tokens cannot be compared.

    Raises:
        UserError: the first thing that does not fit, and the remedy.
    """
    notes, origin = list[str](), before or {}
    if before is None and flags.healing.init_from is not None:
        source = open_source(flags.healing.init_from, flags.model.plugin)
        taken = shared_tensors(config, source, frozenset({FIXED_TEXT} if flags.data.fixed_text else ())).taken
        origin = {"taken": taken, "taken_layers": source.config.layer_variants}
        _check_positions(flags, config, source, data)
        notes += _check_tokens(source, flags.healing.init_from, data)
    if flags.healing.teacher is not None and needs_teacher(flags, reached):
        check_folder("--teacher", flags.healing.teacher)
        source = open_source(flags.healing.teacher, flags.model.plugin)
        check_teacher(flags, config, source)
        notes += _check_tokens(source, flags.healing.teacher, data)
    parameters, _ = expected_headers(config)
    frozen_until(flags, [*parameters], shared_parameters(config, origin))
    return list(dict.fromkeys(notes))


def _check_positions(flags: TrainingFlags, config: ModelConfig, source: Source, data: RunData) -> None:
    """Check what a longer sequence or another rotary scaling could contradict: the base, and the text given."""
    theta, path = source.config.rope_theta, flags.data.fixed_text
    if flags.model.rope_theta != theta:
        raise UserError(
            f"--init-from {source.folder} has rope_theta {theta} but the flags say {flags.model.rope_theta}: leave "
            "--rope-theta out"
        )
    _, buffers = expected_headers(config)
    if path is not None and FIXED_TEXT in buffers and FIXED_TEXT in source.shapes:
        before = source.read(FIXED_TEXT, None, 0, source.shapes[FIXED_TEXT][0])
        check_continued_text(data.fixed_ids(), before, path, source.folder)


def _check_tokens(source: Source, folder: Path, data: RunData) -> list[str]:
    if not isinstance(data, TrainingData):
        return []  # a task's tokens are numbers
    place = source.tokenizer or folder
    remark = check_vocabulary(data.tokenizer_path, data.vocab_size, place, source.config.vocab_size)
    return [remark] if remark else []
