"""The call into lm-evaluation-harness: its wrapper of Hugging Face models, its scores."""

import logging
import os
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from deconattn.evaluation.bars import draw

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BOOTSTRAP_RESAMPLES = 100_000
"""Bootstrap resamples for perplexities' standard errors: the harness's own default."""
FEWSHOT_SEED = 1234
"""Seed that the shots are drawn with: the harness's own default."""
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
    groups: dict[str, Any] | None = None,
    perturb: Callable[[str], str] | None = None,
    samples: bool = False,
    bars: bool = True,
) -> dict[str, Any]:
    """Score a model; returns the harness's `results`, `versions`, `n-samples`, `configs` and so on.

    Args:
        batch_size: sequences a batch; None: the largest that the GPU holds, or `TOKENS_A_BATCH` on a CPU.
        max_length: tokens of context; None: as many as the model was trained with.
        limit: only the first so many documents of a task.
        resamples: bootstrap resamples for perplexities' standard errors; None: `BOOTSTRAP_RESAMPLES`.
        stop: asked between batches whether to leave off.
        groups: the harness's group objects, whose tasks are among `tasks`.
        perturb: changes the contexts, see :class:`~deconattn.evaluation.harness_model.HarnessModel`.
        samples: return each document's scores, too, as the harness's `samples`.
        bars: show on a terminal how far it is.

    Raises:
        UserError: an answer that is longer than the context.
        Stopped: `stop` said so.
    """
    from deconattn.evaluation.harness_model import HarnessModel

    wrapped = HarnessModel(model, tokenizer, batch_size, max_length, stop, perturb, bars)
    resamples = BOOTSTRAP_RESAMPLES if resamples is None else resamples
    return evaluate(wrapped, tasks, limit, resamples, groups, samples, bars)


def evaluate(
    wrapped: Any,
    tasks: Tasks,
    limit: int | None,
    resamples: int,
    groups: dict[str, Any] | None = None,
    samples: bool = False,
    bars: bool = True,
) -> dict[str, Any]:
    """Score one of the harness's own model objects, see :func:`score`; `resamples` 0 leaves standard errors out."""
    from lm_eval.evaluator import evaluate as harness_evaluate

    quiet()
    draw(bars)
    for task in tasks.values():
        task.set_fewshot_seed(FEWSHOT_SEED)  # every model sees the same shots
    chosen = {"tasks": tasks, "groups": groups or {}}
    with redirect_stdout(sys.stderr):  # the harness prints here and there
        return harness_evaluate(wrapped, chosen, limit=limit, bootstrap_iters=resamples, log_samples=samples)


def versions() -> dict[str, str]:
    """Versions of the packages that scores may depend on."""
    from importlib.metadata import version

    names = ("deconattn", "lm_eval", "transformers", "torch", "datasets")
    return {name: version(name) for name in names if find_spec(name)}  # our own tasks need no harness


def quiet() -> None:
    """Silence the harness's logs below errors, and those of DeepSpeed, which the harness's wrapper imports."""
    from deconattn.parallel.process_group import quiet_accelerator

    quiet_accelerator()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    if find_spec("datasets"):
        from datasets.utils.logging import disable_progress_bar, set_verbosity_error

        set_verbosity_error()
        disable_progress_bar()
