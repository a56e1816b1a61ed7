"""Rows that need no trained model: guessing at random, and always giving the commonest answer."""

from collections import Counter
from itertools import islice
from statistics import fmean
from typing import TYPE_CHECKING, Any

from deconattn.evaluation.harness import Tasks, evaluate
from deconattn.evaluation.results import Row, Score, row_of
from deconattn.evaluation.tasks import COLUMNS

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

RANDOM, MAJORITY = "random guess", "majority"


def chance_rows(
    tasks: Tasks, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", limit: int | None
) -> list[Row]:
    """Both rows, over the documents that the tasks score.

    - Random guess: the expected accuracy, which is the mean of 1 / (a document's choices). Perplexities and LAMBADA's
      accuracy are the harness's own for a model that gives each of the vocabulary's tokens the same probability, so
      WikiText's is V to the power of the tokens in a word, and LAMBADA's V to the power of those in a last word.
    - Majority: the index that is right most often, always given. Where one index is right in every document (the
      harness puts SciQ's right answer last), the index says nothing, and the row says what guessing gives. It has no
      perplexity.

    Args:
        model: only its vocabulary size is read.
    """
    from deconattn.evaluation.harness_model import UniformModel

    guessed, commonest = {}, {}
    for column in COLUMNS:
        if column.averaged and column.task in tasks:
            guessed[column.title], commonest[column.title] = _accuracies(tasks[column.task], limit)
    modelled = {column.task for column in COLUMNS if not column.averaged} & set(tasks)
    if modelled:
        uniform = UniformModel(model, tokenizer, batch_size=1024)
        found = evaluate(uniform, {name: tasks[name] for name in sorted(modelled)}, limit, resamples=0)
        guessed |= row_of(RANDOM, found).scores
    return [Row(RANDOM, guessed), Row(MAJORITY, commonest)]


def _accuracies(task: Any, limit: int | None) -> tuple[Score, Score]:
    """Accuracies of random guesses, and of always giving the most frequent index."""
    chances, right = [], Counter[int]()
    for document in islice(task.eval_docs, limit):
        choices = task.doc_to_choice(document)
        gold = task.doc_to_target(document)
        chances.append(1 / len(choices))
        right[choices.index(gold) if isinstance(gold, str) else int(gold)] += 1
    at_random = Score(fmean(chances))
    return at_random, at_random if len(right) == 1 else Score(max(right.values()) / right.total())
