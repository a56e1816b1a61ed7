"""Solvers of the tasks by hand, each from the definition that the task's docstring gives: what a model could do.

A solver takes the tokens of a sample and the places that are asked, and returns an answer for each place.
"""

import itertools
from collections.abc import Callable, Sequence
from functools import cache

from deconattn.probes import Task

Solver = Callable[[Task, list[int], Sequence[int]], list[int]]


def mqar(task, tokens, asked):
    return [tokens[tokens.index(tokens[place]) + 1] for place in asked]


def induction(task, tokens, asked):
    return [tokens[tokens.index(tokens[-1]) + 1]]


def copy(task, tokens, asked):
    return tokens[: len(asked)]


def selective_copy(task, tokens, asked):
    return [token for token in tokens[: asked[0]] if token]


def fuzzy_recall(task, tokens, asked):
    def is_key(token: int) -> bool:
        return 0 < token <= task.alphabet

    runs = [list(run) for _, run in itertools.groupby(tokens[: asked[0]], key=is_key)]
    told = list(zip(runs[::2], runs[1::2], strict=False))
    values = {tuple(key): value for key, value in reversed(told)}  # the first time that it is told counts
    answers = []
    for place in asked:
        said = list(itertools.takewhile(lambda token: not is_key(token), reversed(tokens[: place + 1])))
        rest = tokens[: place + 1 - len(said)]
        key = list(itertools.takewhile(is_key, reversed(rest)))[::-1]
        value = values.get(tuple(key), [0])
        answers.append(value[min(len(said), len(value) - 1)])
    return answers


def compress(task, tokens, asked):
    number = 0
    for token in tokens[:-1]:
        number = number * task.alphabet + token - 2
    return [2 + task.alphabet + number]


def memorise(task, tokens, asked):
    return [facts(task)[tokens[place]] for place in asked]


@cache
def facts(task) -> dict[int, int]:
    """What the samples of another seed tell."""
    found: dict[int, int] = {}
    for index in range(task.facts):
        found |= dict(zip(*(row.tolist() for row in task.sample(99, index)), strict=True))
    return found


def parity(task, tokens, asked):
    return [3 + tokens[: place + 1].count(2) % 2 for place in asked]


def s5(task, tokens, asked):
    every = list(itertools.permutations(range(task.objects)))
    answers = []
    for place in asked:
        state = list(range(task.objects))
        for token in tokens[: place + 1]:
            state = [every[token - 1][here] for here in state]
        answers.append(1 + every.index(tuple(state)))
    return answers


def previous_token(task, tokens, asked):
    return [tokens[place - task.gap] for place in asked]


def positional_recall(task, tokens, asked):
    return [tokens[tokens[place] - 1 - task.alphabet] for place in asked]


def needle(task, tokens, asked):
    start = tokens.index(tokens[asked[0]])
    return tokens[start + 1 : start + 1 + len(asked)]


SOLVERS: dict[str, Solver] = {
    "mqar": mqar,
    "induction": induction,
    "copy": copy,
    "selective-copy": selective_copy,
    "fuzzy-recall": fuzzy_recall,
    "compress": compress,
    "memorise": memorise,
    "parity": parity,
    "s5": s5,
    "previous-token": previous_token,
    "positional-recall": positional_recall,
    "needle": needle,
}
WITHOUT_CONTEXT = ("memorise", "parity", "previous-token", "s5")
"""Tasks that ask from their first tokens on: they have no context before the questions."""
