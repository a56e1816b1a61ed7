"""Checks of `--init-from` before any rank starts: the model fits the flags', its tokens are the corpora's."""

from deconattn.config.flags import TrainingFlags
from deconattn.convert.new_run import check_vocabulary
from deconattn.healing.source import open_source, shared_tensors
from deconattn.layers.config import ModelConfig
from deconattn.model.init import FIXED_TEXT
from deconattn.train.inputs import TrainingData
from deconattn.train.run_data import RunData


def check_start(flags: TrainingFlags, config: ModelConfig, data: RunData) -> list[str]:
    """Check that a run can begin with the weights of `--init-from`; no weight is read but a run's, which are verified.

    Returns:
        A remark where the tokens cannot be compared.

    Raises:
        UserError: the first thing that does not fit, and the remedy.
    """
    assert flags.healing.init_from is not None
    source = open_source(flags.healing.init_from, flags.model.plugin)
    shared_tensors(config, source, frozenset({FIXED_TEXT} if flags.data.fixed_text else ()))
    if not isinstance(data, TrainingData):
        return []  # a task's tokens are numbers
    place = source.tokenizer or source.folder
    remark = check_vocabulary(data.tokenizer_path, data.vocab_size, place, source.config.vocab_size)
    return [remark] if remark else []
