"""Everything wrong with a command line that can be known before a rank starts."""

from collections.abc import Sequence

from deconattn.config import TrainingFlags, model_config
from deconattn.train.command_line import parse_training_flags
from deconattn.train.deepspeed_config import deepspeed_config
from deconattn.train.inputs import TrainingData
from deconattn.train.run_folder import check_run_folder


def checked_flags(arguments: Sequence[str], data_parallel_size: int | None = None) -> TrainingFlags:
    """Parse a training command line and check it against the disk; touches nothing.

    Args:
        data_parallel_size: number of ranks, where it is known already.

    Raises:
        UserError: the first thing that is wrong.
    """
    flags = parse_training_flags(arguments)
    check_run_folder(flags)
    deepspeed_config(flags, 1 if data_parallel_size is None else flags.accumulation_steps(data_parallel_size))
    if flags.data.data:
        vocab_size = TrainingData(flags.data.data, flags).vocab_size
        model_config(flags.model, vocab_size, flags.data.seq_len)
    return flags
