"""The nine scores once more, by hand: no harness, no batches, prompts written out from the tasks' descriptions."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import zstandard
from lm_eval.tasks.wikitext.preprocess_wikitext import wikitext_detokenizer  # two dozen replacements, nothing to score
from transformers import PreTrainedModel, PreTrainedTokenizerBase

Choices = tuple[str, list[str], int]
"""Prompt, continuations, index of the right one."""


def _copa(d: dict[str, Any]) -> Choices:
    # Two spaces: the harness puts one before every answer, and this task brings its own.
    choices = ["  " + d[name][0].lower() + d[name][1:] for name in ("choice1", "choice2")]
    return f"{d['premise'][:-1]} {dict(cause='because', effect='therefore')[d['question']]}", choices, d["label"]


def _tidy(text: str) -> str:
    return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")


def _sciq(d: dict[str, Any]) -> Choices:
    answers = [f" {d[name]}" for name in ("distractor1", "distractor2", "distractor3", "correct_answer")]
    return f"{d['support'].lstrip()}\nQuestion: {d['question']}\nAnswer:", answers, 3


def _hellaswag(d: dict[str, Any]) -> Choices:
    prompt = _tidy(f"{d['activity_label']}: {d['ctx_a']} {d['ctx_b'].capitalize()}")
    return prompt, [f" {_tidy(ending)}" for ending in d["endings"]], int(d["label"])


QUESTIONS: dict[str, tuple[str, Callable[[dict[str, Any]], Choices]]] = {
    "arc_easy": (
        "arc_easy.test",
        lambda d: (
            f"Question: {d['question']}\nAnswer:",
            [f" {text}" for text in d["choices"]["text"]],
            d["choices"]["label"].index(d["answerKey"]),
        ),
    ),
    "boolq": (
        "boolq.validation",
        lambda d: (f"{d['passage']}\nQuestion: {d['question']}?\nAnswer:", [" no", " yes"], d["label"]),
    ),
    "copa": ("copa.validation", _copa),
    "piqa": (
        "piqa.validation",
        lambda d: (f"Question: {d['goal']}\nAnswer:", [f" {d['sol1']}", f" {d['sol2']}"], d["label"]),
    ),
    "sciq": ("sciq.test", _sciq),
    "rte": (
        "rte.validation",
        lambda d: (
            f"{d['sentence1']}\nQuestion: {d['sentence2']} True or False?\nAnswer:",
            [" True", " False"],
            d["label"],
        ),
    ),
    "hellaswag": ("hellaswag.validation", _hellaswag),
}


class Scorer:
    """Log-likelihoods of a model, nats, with at most `longest` tokens in a pass."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, longest: int) -> None:
        self.model, self.tokenizer, self.longest = model, tokenizer, longest

    def scores(self, folder: Path, limit: int) -> dict[str, float]:
        """`acc`, `perplexity` and `word_perplexity` as `TASK METRIC`."""
        found = {}
        for task, (file, read) in QUESTIONS.items():
            hits = []
            for document in _documents(folder, file, limit):
                prompt, choices, right = read(document)
                values = [self._continuation(prompt, choice)[0] for choice in choices]
                hits.append(values.index(max(values)) == right)
            found[f"{task} acc"] = sum(hits) / len(hits)
        texts = [document["text"].rpartition(" ") for document in _documents(folder, "lambada_openai.test", limit)]
        last = [self._continuation(before, f" {word}") for before, _, word in texts]
        found["lambada_openai perplexity"] = math.exp(-sum(value for value, _ in last) / len(last))
        found["lambada_openai acc"] = sum(greedy for _, greedy in last) / len(last)
        pages = [document["page"] for document in _documents(folder, "wikitext2.test.pages", limit)]
        words = sum(len(re.split(r"\s+", page)) for page in pages)
        total = sum(self._page(wikitext_detokenizer({"page": page})) for page in pages)
        return found | {"wikitext word_perplexity": math.exp(-total / words)}

    def _continuation(self, prompt: str, continuation: str) -> tuple[float, bool]:
        whole = self.tokenizer(prompt + continuation).input_ids
        return self._last(whole[-self.longest - 1 :], len(whole) - len(self.tokenizer(prompt).input_ids))

    def _page(self, text: str) -> float:
        ids = [self.tokenizer.eos_token_id, *self.tokenizer(text).input_ids]
        ends = [*range(self.longest + 1, len(ids), self.longest), len(ids)]
        starts = [1, *ends[:-1]]
        windows = zip(starts, ends, strict=True)
        return sum(self._last(ids[max(0, end - self.longest - 1) : end], end - start)[0] for start, end in windows)

    @torch.no_grad()
    def _last(self, ids: list[int], count: int) -> tuple[float, bool]:
        """Of the last `count` tokens given those before, and whether greedy decoding gives them."""
        logits = self.model(torch.tensor([ids[:-1]])).logits[0, -count:]
        targets = torch.tensor(ids[-count:])
        greedy = bool((logits.argmax(-1) == targets).all())
        return -float(torch.nn.functional.cross_entropy(logits, targets, reduction="sum")), greedy


def _documents(folder: Path, file: str, limit: int) -> list[dict[str, Any]]:
    plain, packed = folder / f"{file}.jsonl", folder / f"{file}.jsonl.zst"
    if plain.is_file():
        text = plain.read_text(encoding="utf-8")
    else:
        text = zstandard.ZstdDecompressor().decompressobj().decompress(packed.read_bytes()).decode()
    return [json.loads(line) for line in text.split("\n")[:limit] if line]
