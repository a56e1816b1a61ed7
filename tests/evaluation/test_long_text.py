"""The tasks of long text: perplexity by position and the needle, as the tool gives them and by hand."""

import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GPT2Config, PreTrainedTokenizerFast

from deconattn.analysis.sample import Sample
from deconattn.analysis.tokens import read_sample
from deconattn.checkpoint.stored_model import open_model
from deconattn.errors import UserError
from deconattn.evaluation.logits import LogitReader
from deconattn.evaluation.long_text import split_tasks
from deconattn.evaluation.needle import CHOICES, Wording, needle_cells, needle_numbers, score_needles
from tests.evaluation.conftest import CONTEXT, Evaluate

Results = Callable[..., dict[str, Any]]
TEXT = "The mill stood by the river. Nobody knew who had built it! And yet it turned, day and night. "


@pytest.fixture(scope="module")
def gpt2(byte_level: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of another family, with embeddings of 64 positions."""
    folder = tmp_path_factory.mktemp("gpt2") / "gpt2"
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=300, n_positions=64, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(byte_level / "tokenizer.json"), eos_token="<|endoftext|>")
    tokenizer.save_pretrained(folder)
    return folder


def test_own_tasks_are_told_from_the_harness() -> None:
    assert split_tasks("piqa, needle,position,rte") == (("position", "needle"), "piqa,rte")
    assert split_tasks("") == ((), "") and split_tasks("needle") == (("needle",), "")


def test_perplexity_by_position(
    qwen: Path, hybrid: Path, gpt2: Path, results: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)  # not needed
    words = ("--tasks", "position", "--sequences", 5, "--seq-len", 50)
    found = results(qwen, hybrid, gpt2, *words)
    assert "lm_eval" not in found["versions"] or found["versions"]["lm_eval"]
    ids = read_sample(Sample(sequences=5, seq_len=50), [open_model(qwen)])[0]
    for path, entry in zip((qwen, hybrid, gpt2), found["models"], strict=True):
        model = open_model(path).load("fp32")
        with torch.no_grad():
            logits = model(input_ids=ids).logits[:, :-1].double()
        losses = -logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
        numbers = entry["position"]
        assert (numbers["sequences"], numbers["seq_len"], numbers["text"]) == (5, 50, "the bundled demo corpus")
        assert numbers["perplexity"]["value"] == pytest.approx(math.exp(losses.mean().item()), rel=1e-4)
        assert entry["scores"] == {"Text ppl": numbers["perplexity"]["value"]}
        for bins in (numbers["octaves"], numbers["bins"]):
            assert (bins[0]["first"], bins[-1]["last"]) == (2, 50)
            for one in bins:
                mean = losses[:, one["first"] - 2 : one["last"] - 1].mean().item()
                assert one["value"] == pytest.approx(math.exp(mean), rel=1e-4)
                assert one["low"] < one["value"] < one["high"]
    assert [one["first"] for one in found["models"][0]["position"]["octaves"]] == [2, 4, 8, 16, 32]
    lines = (tmp_path / "out" / "results.md").read_text().splitlines()
    assert lines[0].startswith("## Perplexity by position") and lines[2] == "| tokens | qwen | hybrid | gpt2 |"
    assert lines[4].startswith("| 2 to 3 | ") and lines[-1].startswith("| all | ")
    assert {"position.png", "position.svg"} < {path.name for path in (tmp_path / "out").iterdir()}
    assert "dotted: what a model was made for" in (tmp_path / "out" / "position.svg").read_text()
    assert results(qwen, *words)["models"][0]["position"] == found["models"][0]["position"]  # written over


def test_beyond_the_training_and_what_cannot_go_there(
    qwen: Path, hybrid: Path, gpt2: Path, evaluate: Evaluate, refused: Callable[..., str], tmp_path: Path
) -> None:
    long = ("--tasks", "position", "--sequences", 2, "--seq-len", CONTEXT + 40)
    code, printed, err = evaluate(qwen, *long, "--out", tmp_path / "out")
    assert code == 0, err
    assert f"qwen was made for {CONTEXT} tokens, and is scored at {CONTEXT + 40}" in err
    assert f"{CONTEXT // 2} to {CONTEXT + 40}" in printed or f"{CONTEXT} to {CONTEXT + 40}" in printed
    assert f"beyond the fixed stream of {hybrid}, {CONTEXT} tokens" in refused(hybrid, *long)
    needle = ("--tasks", "needle", "--needle-lengths", f"64,{CONTEXT + 40}")
    line = refused(hybrid, *needle)
    assert f"--needle-lengths {CONTEXT + 40} is beyond the fixed stream of hybrid, {CONTEXT} tokens" in line
    code, _, err = evaluate(gpt2, *long, "--out", tmp_path / "none")
    assert code == 2 and f"gpt2 has embeddings of 64 positions, fewer than the {CONTEXT + 40} tokens" in err
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--seq-len 64", "go with the tasks position and needle: add one to --tasks"),
        ("--tasks position --needle-lengths 64", "--needle-lengths goes with the task needle"),
        ("--tasks position --needle-depths 1", "--needle-depths goes with the task needle"),
        ("--tasks needle --needle-depths 0,101", "'101' is no depth in per cent"),
        ("--tasks needle --needle-depths 0,deep", "'deep' is no depth in per cent"),
        ("--tasks needle --needle-lengths 64,many", "--needle-lengths 64,many: 'many' is no number of tokens"),
        ("--tasks needle --needle-lengths 64 --seq-len 64", "leave one out"),
        ("--tasks needle --perturb typos", "--perturb goes with tasks of the harness"),
        ("--tasks position --limit 5", "--limit goes with tasks of the harness"),
        ("--tasks position --context-lengths 64", "--context-lengths goes with tasks of the harness"),
        ("--tasks position --sequences 9999999", "the bundled demo corpus has"),
    ],
)
def test_wrong_flags(flags: str, message: str, qwen: Path, refused: Callable[..., str]) -> None:
    assert message in refused(qwen, *flags.split())


def test_beside_the_harness(qwen: Path, documents: Path, results: Results) -> None:
    words = ("--datasets", documents, "--tasks", "copa,position", "--sequences", 2, "--seq-len", 16)
    (entry,) = results(qwen, *words)["models"]
    assert set(entry["scores"]) == {"COPA", "COPA stderr", "Text ppl"}


def test_the_tools_needle(qwen: Path, hybrid: Path, results: Results, tmp_path: Path) -> None:
    found = results(qwen, hybrid, "--tasks", "needle", "--sequences", 3, "--needle-depths", "0,50", "--batch-size", 2)
    for entry in found["models"]:
        numbers = entry["needle"]
        assert numbers["chance"] == pytest.approx(1 / CHOICES)
        assert [(cell["length"], cell["depth"]) for cell in numbers["cells"]] == [(CONTEXT, 0.0), (CONTEXT, 50.0)]
        mean = sum(cell["accuracy"] for cell in numbers["cells"]) / 2
        assert numbers["accuracy"] == entry["scores"]["Needle acc"] == pytest.approx(mean)
    lines = (tmp_path / "out" / "results.md").read_text().splitlines()
    assert lines[2] == "|  | tokens | depth 0 % | depth 50 % | exact, all depths |"
    assert "chance 0.1" in (tmp_path / "out" / "needle.svg").read_text()


def test_a_needle_lies_where_it_should(hf_tokenizer: PreTrainedTokenizerFast) -> None:
    def encoded(text: str) -> list[int]:
        return hf_tokenizer(text, add_special_tokens=False).input_ids

    haystack = encoded(TEXT * 9)
    ends = {token for token in haystack if hf_tokenizer.decode([token]).rstrip().endswith((".", "!"))}
    for number in range(6):
        wording = Wording.draw(hf_tokenizer, number)
        assert wording == Wording.draw(hf_tokenizer, number) != Wording.draw(hf_tokenizer, number + 1)
        assert len(set(wording.choices)) == CHOICES and wording.choices[wording.right] == wording.answer[0]
        before: list[str] = []
        for depth in (0, 30, 60, 100):
            ids = wording.hidden_in(haystack, ends, 200, depth)
            text = hf_tokenizer.decode(ids)
            assert len(ids) == 200
            fact = hf_tokenizer.decode(wording.fact)
            start, _, rest = text.partition(fact)
            assert fact.strip().rstrip(".") == text[-len(fact) :].rpartition("\n")[2]
            assert start == "" or depth == 100 or start.rstrip().endswith((".", "!"))
            assert (start + rest).startswith(TEXT[:60])
            before.append(start)
        assert before[0] == "" and sorted(before, key=len) == before and len(set(before)) == 4
        bare = [wording.hidden_in(haystack, set(), 200, depth) for depth in range(0, 101, 10)]
        room = 200 - len(wording.fact) - len(wording.question) - len(wording.answer)
        starts = [next(n for n in range(200) if ids[n : n + len(wording.fact)] == wording.fact) for ids in bare]
        assert starts == [round(room * depth / 100) for depth in range(0, 101, 10)]


class Oracle(LogitReader):
    """Knows the answer where the fact is among the last `reach` tokens; elsewhere all tokens are alike to it.

    A `wordy` one goes on with another token than the answer's second.
    """

    def __init__(self, wordings: Sequence[Wording], reach: int, wordy: bool = False) -> None:
        self._wordings, self._reach, self._wordy, self._seen = wordings, reach, wordy, 0
        self._batch_size = 3
        self.head = nn.Identity()

    def hidden(self, ids: Tensor) -> Tensor:
        logits = torch.zeros(*ids.shape, 300)
        for row, tokens in zip(logits, ids.tolist(), strict=True):
            wording = self._wordings[self._seen % len(self._wordings)]
            self._seen += 1
            seen, fact, size = tokens[-self._reach :], wording.fact, len(wording.answer)
            assert tokens[len(tokens) - size + 1 :] == wording.answer[:-1]
            if any(seen[start : start + len(fact)] == fact for start in range(len(seen))):
                row[range(-size, 0), wording.answer] = 1
                row[-size + 1 :, 7] += 2 * self._wordy
        return logits


def test_right_and_exact_answers_are_counted(hf_tokenizer: PreTrainedTokenizerFast) -> None:
    haystacks = torch.tensor(hf_tokenizer(TEXT * 60, add_special_tokens=False).input_ids[:2400]).view(8, 300)
    wordings = [Wording.draw(hf_tokenizer, number) for number in range(8)]
    assert all(len(wording.answer) > 1 for wording in wordings)
    far, near, wordy = (
        score_needles(Oracle(wordings, *how), hf_tokenizer, haystacks, [200, 300], [0, 100], "oracle")
        for how in ((300,), (120,), (300, True))
    )
    places = [(200, 0, 8), (200, 100, 8), (300, 0, 8), (300, 100, 8)]
    assert [(cell.length, cell.depth, cell.count) for cell in far] == places
    assert all(cell.right == cell.exact == 8 for cell in far)
    assert all((cell.right, cell.exact) == (8, 0) for cell in wordy)
    by_chance = sum(wording.right == 0 for wording in wordings)
    assert [(cell.right, cell.exact) for cell in near] == [(by_chance, 0), (8, 8)] * 2
    numbers = needle_numbers(far)
    assert numbers["accuracy"] == numbers["exact"] == 1 > numbers["cells"][0]["low"]
    assert needle_cells([("oracle", numbers)])[1] == ["oracle", "200", "100", "100", "100"]
    with pytest.raises(UserError, match="20 tokens have no room for fact and question"):
        score_needles(Oracle(wordings, 300), hf_tokenizer, haystacks, [20], [0], "oracle")
