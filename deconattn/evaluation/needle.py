"""A needle in a haystack of real text: a fact, hidden at some depth, is asked at the end.

After Kamradt 2023 ("Needle in a haystack") and Mohtashami and Jaggi 2023, arXiv:2305.16300 (the passkey), as a choice
that models too small to answer in words of their own can make: the answers to choose from begin with different tokens,
and the one whose first token is the likeliest is chosen. A model that does not find the fact is right by chance.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from deconattn.errors import UserError
from deconattn.evaluation.logits import LogitReader
from deconattn.statistics import share_interval

FACT = "\nThe password of the {place} is {word}.\n"
QUESTION = "\nThe password of the {place} is"
PLACES = ("castle", "garden", "harbour", "library", "market", "mountain", "palace", "river")
WORDS = (
    "apple bread chair dog egg fish gold house iron jewel king lamp moon night orange paper queen rain silver table "
    "uncle valley water yellow"
).split()
"""Answers: words that begin with different letters, and so as a rule with different tokens."""
CHOICES = 10
SEED = 0


@dataclass(frozen=True)
class Wording:
    """Fact, question and answer in one tokenizer's tokens.

    Attributes:
        question: tokens up to the first in which answers differ.
        answer: the right one's tokens from there on.
        choices: the first of these of each answer to choose from.
        right: place of the right one among them.
    """

    fact: list[int]
    question: list[int]
    answer: list[int]
    choices: list[int]
    right: int

    @classmethod
    def draw(cls, tokenizer: PreTrainedTokenizerBase, number: int) -> "Wording":
        """Return that of a sample, by its number: the same for every length, depth and model of this tokenizer.

        Raises:
            UserError: the tokenizer does not tell the answers apart.
        """
        generator = np.random.Generator(np.random.Philox(key=SEED, counter=[0, 0, 0, number]))
        place = PLACES[generator.integers(len(PLACES))]
        order = [WORDS[index] for index in generator.permutation(len(WORDS))]
        whole = {word: _encoded(tokenizer, f"{QUESTION.format(place=place)} {word}") for word in order}
        shared = 0
        while len({tuple(ids[: shared + 1]) for ids in whole.values()}) == 1:
            shared += 1
        first: dict[int, str] = {}
        for word, ids in whole.items():
            if len(ids) > shared:
                first.setdefault(ids[shared], word)
        choices = list(first)[:CHOICES]
        if len(choices) < 2:
            raise UserError("needle: the model's tokenizer begins all answers with the same token: leave needle out")
        right = int(generator.integers(len(choices)))
        word = first[choices[right]]
        fact = _encoded(tokenizer, FACT.format(place=place, word=word))
        return cls(fact, whole[word][:shared], whole[word][shared:], choices, right)

    def hidden_in(self, haystack: Sequence[int], ends: set[int], length: int, depth: float) -> list[int]:
        """Return `length` tokens: the haystack's first with the fact at `depth` per cent of them, question, answer.

        Args:
            ends: tokens that end a sentence; the fact follows the last of them before its place, if there is one.

        Raises:
            UserError: the length has no room for them.
        """
        room = length - len(self.fact) - len(self.question) - len(self.answer)
        if room < 1:
            raise UserError(f"needle: {length} tokens have no room for fact and question: give longer sequences")
        cut = round(room * depth / 100)
        if 0 < cut < room:
            cut = next((place for place in range(cut, 0, -1) if haystack[place - 1] in ends), cut)
        return [*haystack[:cut], *self.fact, *haystack[cut:room], *self.question, *self.answer]


@dataclass(frozen=True)
class Cell:
    """Samples of one length, in tokens, and one depth, in per cent of the text, 0 its beginning.

    Attributes:
        right: the right answer is chosen.
        exact: each token of it is the likeliest of all.
    """

    length: int
    depth: float
    count: int
    right: int
    exact: int
    chance: float


def score_needles(
    reader: LogitReader,
    tokenizer: PreTrainedTokenizerBase,
    haystacks: Tensor,
    lengths: Sequence[int],
    depths: Sequence[float],
    label: str,
) -> list[Cell]:
    """Score a model at every length and depth.

    Args:
        haystacks: int64 [N, longest], text in the tokenizer's tokens; a sample each.

    Raises:
        UserError: a length without room, a tokenizer that tells no answers apart, logits that are no numbers.
    """
    texts = haystacks.tolist()
    wordings = [Wording.draw(tokenizer, number) for number in range(len(texts))]
    chance = fmean(1 / len(wording.choices) for wording in wordings)
    ends = {token for token in set(haystacks.flatten().tolist()) if _ends_sentence(tokenizer.decode([token]))}
    cells = []
    for length, depth in product(lengths, depths):
        samples = [wording.hidden_in(text, ends, length, depth) for wording, text in zip(wordings, texts, strict=True)]
        answers = [*_answers(reader, samples, wordings, label)]
        right, exact = (sum(marks) for marks in zip(*answers, strict=True))
        cells.append(Cell(length, depth, len(samples), right, exact, chance))
    return cells


def _answers(
    reader: LogitReader, samples: Sequence[list[int]], wordings: Sequence[Wording], label: str
) -> Iterator[tuple[bool, bool]]:
    """Yield of each sample, all of one length, whether the choice is right and whether the answer is exact."""
    size = reader.batch_size(len(samples[0]))
    for start in range(0, len(samples), size):
        states = reader.hidden(torch.tensor([ids[:-1] for ids in samples[start : start + size]]))
        for state, wording in zip(states, wordings[start:], strict=False):
            with torch.inference_mode():
                logits = reader.head(state[-len(wording.answer) :]).float()
            if not logits.isfinite().all():
                raise UserError(
                    f"{label}: its logits after the haystack are no finite numbers: give another checkpoint"
                )
            chosen = int(logits[0, wording.choices].argmax())
            yield chosen == wording.right, logits.argmax(dim=-1).tolist() == wording.answer


def needle_numbers(cells: Sequence[Cell]) -> dict[str, Any]:
    """What results.json has of a model: shares of right and of exact answers, with 95 % intervals over samples."""
    found = []
    for cell in cells:
        share = share_interval(cell.right, cell.count)
        found.append(
            {
                "length": cell.length,
                "depth": cell.depth,
                "accuracy": share.mean,
                "low": share.low,
                "high": share.high,
                "exact": cell.exact / cell.count,
            }
        )
    total = sum(cell.count for cell in cells)
    return {
        "chance": cells[0].chance,
        "accuracy": sum(cell.right for cell in cells) / total,
        "exact": sum(cell.exact for cell in cells) / total,
        "cells": found,
    }


def needle_cells(models: list[tuple[str, dict[str, Any]]]) -> list[list[str]]:
    """Table of labels and their numbers, per cent: a line a model and length, a column a depth, then exact answers."""
    depths = list(dict.fromkeys(cell["depth"] for cell in models[0][1]["cells"]))
    cells = [["", "tokens", *(f"depth {depth:g} %" for depth in depths), "exact, all depths"]]
    for label, found in models:
        for length in dict.fromkeys(cell["length"] for cell in found["cells"]):
            here = [cell for cell in found["cells"] if cell["length"] == length]
            exact = sum(cell["exact"] for cell in here) / len(here)
            cells.append(
                [label, str(length), *(f"{100 * cell['accuracy']:.0f}" for cell in here), f"{100 * exact:.0f}"]
            )
    return cells


def _encoded(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    return ids


def _ends_sentence(token: str) -> bool:
    return "\n" in token or token.rstrip().endswith((".", "!", "?"))
