"""Benchmarks while a model trains: rank 0 scores what a checkpoint holds, as the command `evaluate` would."""

import os
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from deconattn.config.flag_groups import EvaluationFlags
from deconattn.evaluation import harness
from deconattn.evaluation.datasets import data_files
from deconattn.evaluation.results import Row, as_numbers, row_of
from deconattn.evaluation.selection import Selection, load, nine
from deconattn.evaluation.tasks import benchmarks
from deconattn.extras import require

RESAMPLES = 1000
"""Bootstrap resamples for perplexities' standard errors, made by one process: accurate to 2 %."""


def check_evaluation(flags: EvaluationFlags) -> None:
    """Raises UserError for a task or a file that is not there, or without the harness."""
    chosen = benchmarks(flags.eval_tasks)
    require("eval", "--eval-tasks")
    if flags.eval_datasets is not None:
        data_files(flags.eval_datasets, chosen)


def scorer(flags: EvaluationFlags) -> Callable[[Path, Callable[[], bool]], dict[str, float] | None] | None:
    """Return the function that scores a trainer's checkpoints; None where no benchmark is asked for."""
    return InLoopEvaluation(flags).score if flags.eval_tasks else None


class InLoopEvaluation:
    """The tasks of a run with their documents, loaded when first scored.

    Raises:
        UserError: documents that cannot be had.
    """

    def __init__(self, flags: EvaluationFlags) -> None:
        self._flags = flags
        self._chosen = benchmarks(flags.eval_tasks)
        self._tasks: harness.Tasks = {}
        self._cache = TemporaryDirectory(prefix="deconattn-evaluation-")

    def score(self, checkpoint: Path, stop: Callable[[], bool]) -> dict[str, float] | None:
        """The figures of table 1 by title, their errors as `TITLE stderr`; None if stopped: some would be no row.

        Args:
            checkpoint: a step-N folder, computed in what the run computes in.
            stop: asked between batches whether to leave off.

        Raises:
            UserError: documents that cannot be had, or an answer longer than the context.
        """
        from deconattn.checkpoint.stored_model import open_model

        if not self._tasks:
            files = None
            if self._flags.eval_datasets is not None:
                files = data_files(self._flags.eval_datasets, self._chosen)
                harness.without_network()
            selection = Selection(tuple(task.name for task in self._chosen), nine())
            self._tasks = load(selection, files, Path(self._cache.name)).tasks
        os.environ["DISABLE_MULTIPROC"] = "1"  # the harness would fork a process that has threads and a GPU
        stored = open_model(checkpoint)
        model = stored.load()
        row = Row("", {})
        for name, task in self._tasks.items():
            try:
                found = harness.score(
                    model,
                    stored.tokenizer,
                    {name: task},
                    limit=self._flags.eval_limit,
                    resamples=RESAMPLES,
                    stop=stop,
                    bars=False,  # the training draws its own
                )
            except harness.Stopped:
                return None
            row.scores.update(row_of("", found).scores)
        return as_numbers(row)
