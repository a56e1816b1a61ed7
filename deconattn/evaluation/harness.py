"""The call into lm-evaluation-harness: its tasks, its wrapper of Hugging Face models, its scores."""

import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deconattn.errors import UserError
from deconattn.evaluation.datasets import local_task
from deconattn.evaluation.tasks import Benchmark

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BOOTSTRAP_RESAMPLES = 100_000
"""Bootstrap resamples for perplexities' standard errors: the harness's own default."""
TOKENS_A_BATCH = 4096
"""Tokens in a batch on the CPU, where nothing probes what fits: the logits of as many positions are in memory twice,
and larger batches gain nothing."""

Tasks = dict[str, Any]
"""The harness's task objects by name."""


class Stopped(Exception):
    """Scoring was left off on request."""


def without_network() -> None:
    """Keep the Hugging Face libraries from the network: for a process that has not imported them yet."""
    os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")


def load_tasks(chosen: Sequence[Benchmark], files: Mapping[str, Path] | None, cache: Path) -> Tasks:
    """The harness's tasks, zero-shot, with their documents.

    Args:
        files: by task, the file of its documents; None: the hub's.
        cache: a folder for the `datasets` library, for as long as the tasks are used; unused with the hub, whose
            data sets are kept where they always are.

    Raises:
        UserError: documents that cannot be loaded.
    """
    _quiet()
    manager = _task_manager()
    loaded: Tasks = {}
    for task in chosen:
        changes = {} if files is None else local_task(task, files[task.name], cache)
        try:
            loaded |= manager.load([{**definition_of(task), "num_fewshot": 0, **changes}])["tasks"]
        except Exception as error:  # whatever network, hub and JSON reader come up with
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            source = "from the hub: check the network, or give --datasets" if files is None else f"{files[task.name]}"
            raise UserError(f"the documents of {task.name} cannot be loaded ({reason}), {source}") from error
    return loaded


def definition_of(task: Benchmark) -> dict[str, Any]:
    """Return the harness's definition of a task: `dataset_path`, `dataset_name`, and so on."""
    from lm_eval.tasks.manager import load_yaml

    return load_yaml(_task_manager().task_index[task.name].yaml_path)


def score(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    tasks: Tasks,
    *,
    batch_size: int | None = None,
    max_length: int | None = None,
    limit: int | None = None,
    resamples: int | None = None,
    stop: Callable[[], bool] | None = None,
) -> dict[str, Any]:
    """Score a model; returns the harness's `results`, `versions`, `n-samples`, `configs` and so on.

    Args:
        batch_size: sequences a batch; None: the largest that the GPU holds, or `TOKENS_A_BATCH` on a CPU.
        max_length: tokens of context; None: as many as the model was trained with.
        limit: only the first so many documents of a task.
        resamples: bootstrap resamples for perplexities' standard errors; None: `BOOTSTRAP_RESAMPLES`.
        stop: asked between batches whether to leave off.

    Raises:
        UserError: an answer that is longer than the context.
        Stopped: `stop` said so.
    """
    from deconattn.evaluation.harness_model import HarnessModel

    wrapped = HarnessModel(model, tokenizer, batch_size, max_length, stop)
    return evaluate(wrapped, tasks, limit, BOOTSTRAP_RESAMPLES if resamples is None else resamples)


def evaluate(wrapped: Any, tasks: Tasks, limit: int | None, resamples: int) -> dict[str, Any]:
    """Score one of the harness's own model objects, see :func:`score`; `resamples` 0 leaves standard errors out."""
    from lm_eval.evaluator import evaluate as harness_evaluate

    _quiet()
    with redirect_stdout(sys.stderr):  # the harness prints here and there
        return harness_evaluate(wrapped, {"tasks": tasks}, limit=limit, bootstrap_iters=resamples, log_samples=False)


def versions() -> dict[str, str]:
    """Versions of the packages that scores may depend on."""
    from importlib.metadata import version

    return {name: version(name) for name in ("deconattn", "lm_eval", "transformers", "torch", "datasets")}


@cache
def _task_manager() -> Any:
    """Task manager that knows the nine tasks: reading all the harness's definitions takes seconds."""
    import lm_eval.tasks

    from deconattn.evaluation.tasks import BENCHMARKS

    root = Path(lm_eval.tasks.__file__).parent
    folders = sorted({str(root / task.folder) for task in BENCHMARKS.values()})
    return lm_eval.tasks.TaskManager(include_path=folders, include_defaults=False)


def _quiet() -> None:
    """Silence the harness's logs below errors, and those of DeepSpeed, which the harness's wrapper imports."""
    from deconattn.parallel.process_group import quiet_accelerator

    quiet_accelerator()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    if find_spec("datasets"):
        from datasets.utils.logging import disable_progress_bar, set_verbosity_error

        set_verbosity_error()
        disable_progress_bar()
