"""Rows that need no trained model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deconattn.checkpoint.stored_model import open_model
from tests.evaluation.documents import DOCUMENTS
from tests.hf.models import VOCAB

Results = Callable[..., dict[str, Any]]


def test_both_rows(qwen: Path, documents: Path, results: Results) -> None:
    chance = results(qwen, "--datasets", documents)["chance"]
    random, majority = chance["random guess"], chance["majority"]
    encode = open_model(qwen).tokenizer
    last = [text.rpartition(" ")[2] for text in (document["text"] for document in DOCUMENTS["lambada_openai.test"])]
    tokens = [len(encode(f" {word}").input_ids) for word in last]  # byte-level: a word's tokens do not depend on others
    assert random["LAMBADA ppl"] == pytest.approx(VOCAB ** (sum(tokens) / len(tokens)))
    assert random["Wiki ppl"] > VOCAB  # a word has more than one token
    assert random["LAMBADA acc"] == 0
    assert random["ARC-E"] == pytest.approx((1 / 4 + 1 / 3 + 1 / 5 + 1 / 4) / 4)
    assert {title: random[title] for title in ("BoolQ", "COPA", "PIQA", "SciQ", "RTE", "HellaSwag")} == {
        "BoolQ": 0.5,
        "COPA": 0.5,
        "PIQA": 0.5,
        "SciQ": 0.25,
        "RTE": 0.5,
        "HellaSwag": 0.25,
    }
    right_most_often = {
        "ARC-E": 2 / 4,  # the first answer is right twice
        "BoolQ": 2 / 3,
        "COPA": 2 / 3,
        "PIQA": 2 / 3,
        "SciQ": 1 / 4,  # the last answer always is, by the harness's bookkeeping
        "RTE": 2 / 3,
        "HellaSwag": 1 / 2,
    }
    assert majority.pop("Avg") == pytest.approx(sum(right_most_often.values()) / 7)
    assert majority == pytest.approx(right_most_often)


def test_over_the_documents_that_are_scored(qwen: Path, documents: Path, results: Results) -> None:
    chance = results(qwen, "--datasets", documents, "--tasks", "arc_easy,rte", "--limit", 2)["chance"]
    assert chance["random guess"] == pytest.approx({"ARC-E": (1 / 4 + 1 / 3) / 2, "RTE": 1 / 2})
    assert chance["majority"] == pytest.approx({"ARC-E": 1 / 2, "RTE": 1 / 2})
