"""Samples of a synthetic task as a run's data (`--data probe:TASK`)."""

import inspect
import sys
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from deconattn.config.flags import TrainingFlags
from deconattn.config.probe_source import PREFIX
from deconattn.config.run_config import CorpusIdentity
from deconattn.data import Batch
from deconattn.mixers.plugins import code_digest, load_plugins
from deconattn.probes import Part, Task, parse_task, stream
from deconattn.train.run_data import RunData


class ProbeStream:
    """Samples of a task by their numbers; the labels are what is asked at each position, not the next token.

    Args:
        plugin: files that another process must load to know the task.
    """

    num_samples = sys.maxsize

    def __init__(self, task: Task, seed: int, part: Part, plugin: tuple[Path, ...] = ()) -> None:
        self._task, self._seed, self._part, self._plugin = task, seed, part, plugin

    def arrays(self, numbers: Sequence[int], doc_mask: bool) -> npt.NDArray[np.int64]:
        """Return tokens and labels, `[2, B, L]`; a task has no documents to mask."""
        return np.stack(self._task.batch(stream(self._seed, self._part), numbers))

    def batch(self, numbers: Sequence[int], doc_mask: bool) -> Batch:
        """Return the samples of these numbers, one a row."""
        return Batch.of(torch.from_numpy(self.arrays(numbers, doc_mask)))

    def __reduce__(self) -> tuple[Any, ...]:
        return _opened, (str(self._task), self._seed, self._part, self._plugin)


def _opened(words: str, seed: int, part: Part, plugin: tuple[Path, ...]) -> ProbeStream:
    load_plugins(plugin)
    return ProbeStream(parse_task(words), seed, part, plugin)


class ProbeData(RunData):
    """A task without end, and samples of another stream to validate on. There is no tokenizer: no text is read."""

    def __init__(self, task: Task, flags: TrainingFlags) -> None:
        super().__init__(flags)
        self._task = task
        seed, plugin = flags.optimization.seed, flags.model.plugin
        self._stream = ProbeStream(task, seed, "train", plugin)
        self._validation = ProbeStream(task, seed, "held-out")
        file = Path(inspect.getfile(type(task))).resolve()
        code = f" {code_digest(file)}" if file in {given.resolve() for given in plugin} else ""
        self.identities = [CorpusIdentity(f"{PREFIX}{task}", 1.0, f"{PREFIX}{task}{code}")]

    @cached_property
    def _train(self) -> ProbeStream:
        return self._stream

    @property
    def vocab_size(self) -> int:
        return self._task.vocab_size

    def write_tokenizer(self, folder: Path) -> None:
        """Write nothing: the tokens are no text."""

    def fixed_ids(self) -> Tensor:
        """Return the fixed stream's token ids, int64 [L]: the first training sample."""
        tokens, _ = self._stream.arrays([0], False)
        return torch.from_numpy(tokens[0])
