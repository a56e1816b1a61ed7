"""Tasks beyond the nine, shots, and perturbed contexts."""

import json
import math
import random
import re
from collections.abc import Callable
from pathlib import Path
from statistics import stdev
from typing import Any

import lm_eval
import pytest
import torch
import yaml
from lm_eval.tasks import TaskManager

from deconattn.checkpoint.stored_model import open_model
from deconattn.evaluation import selection
from deconattn.evaluation.perturbations import Perturbation, perturbations
from deconattn.evaluation.selection import Selection, load, select
from tests.evaluation.conftest import CONTEXT, RESAMPLES
from tests.evaluation.test_scores import figures

Results = Callable[..., dict[str, Any]]
COLOURS = ("red", "green", "blue", "white")


def document(number: int) -> dict[str, Any]:
    draws = random.Random(number)
    return {"thing": f"thing {draws.randrange(100)}", "choices": list(COLOURS), "right": draws.randrange(4)}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a choice, a generation, a perplexity of whole texts, and a group and a tag of the first two."""
    folder = tmp_path_factory.mktemp("tasks")
    for split, numbers in (("train", range(20)), ("validation", range(20, 26))):
        lines = "".join(json.dumps(document(number)) + "\n" for number in numbers)
        (folder / f"{split}.jsonl").write_text(lines)
    data = {split: str(folder / f"{split}.jsonl") for split in ("train", "validation")}
    common = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": data},
        "training_split": "train",
        "validation_split": "validation",
        "doc_to_text": "The {{thing}} is",
        "tag": "our_tag",
    }
    metrics = [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_norm")]
    definitions: dict[str, dict[str, Any]] = {
        "colours": common
        | {
            "output_type": "multiple_choice",
            "doc_to_choice": "choices",
            "doc_to_target": "right",
            "metric_list": metrics,
            "metadata": {"version": 1.5},
        },
        "naming": common
        | {
            "output_type": "generate_until",
            "doc_to_target": "{{choices[right]}}",
            "num_fewshot": 1,
            "generation_kwargs": {"until": ["\n"], "max_gen_toks": 4},
            "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        },
        "texts": {key: value for key, value in common.items() if key != "tag"}
        | {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{thing}} and more"},
    }
    for name, definition in definitions.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"task": name, **definition}))
    group = {"group": "ours", "task": ["colours", "naming"], "aggregate_metric_list": [{"metric": "acc"}]}
    (folder / "ours.yaml").write_text(yaml.safe_dump(group))
    return folder


def stock(model: Path, tasks: Path, names: list[str], **more: Any) -> dict[str, Any]:
    """The harness's own figures."""
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    return lm_eval.simple_evaluate(
        model="hf",
        model_args=f"pretrained={model},trust_remote_code=True",
        tasks=names,
        task_manager=manager,
        device="cpu",
        batch_size=2,
        bootstrap_iters=RESAMPLES,
        **more,
    )


@pytest.mark.parametrize("shots", [pytest.param(None, marks=pytest.mark.slow), 2])
def test_any_task_scores_as_the_stock_harness_does(
    shots: int | None, hybrid: Path, qwen: Path, tasks: Path, results: Results, tmp_path: Path
) -> None:
    flags = ("--tasks", "ours,texts", "--include-path", tasks, "--batch-size", 2)
    ours = results(qwen, hybrid, *flags, *(() if shots is None else ("--num-fewshot", shots)))
    for model, entry in zip((qwen, hybrid), ours["models"], strict=True):  # of two models each sees the same shots
        theirs = stock(model, tasks, ["ours", "texts"], num_fewshot=shots)
        expected = figures(theirs)
        found = figures(entry["harness"])
        assert {name: found[name] for name in expected} == expected and len(expected) > 10
        assert entry["scores"]["colours acc_norm"] == theirs["results"]["colours"]["acc_norm,none"]
        assert entry["scores"]["colours acc stderr"] == theirs["results"]["colours"]["acc_stderr,none"]
        assert entry["scores"]["ours acc"] == theirs["results"]["ours"]["acc,none"]
        wanted = {"colours": 0, "naming": 1, "texts": 0} if shots is None else {"colours": 2, "naming": 2, "texts": 0}
        assert {name: entry["harness"]["n-shot"][name] for name in wanted} == wanted
        assert entry["harness"]["versions"]["colours"] == 1.5
    assert ours["notes"] == ([] if shots is None else ["texts: whole texts are scored, without shots"])
    assert ours["chance"] == {}
    text = (tmp_path / "out" / "results.md").read_text()
    assert text.startswith("## Other tasks\n\n|  | shots | version | documents | qwen | hybrid |\n")
    score = ours["models"][0]["scores"]
    expected_cell = f"{score['colours acc']:.4g} ± {score['colours acc stderr']:.2g}"
    (line,) = [line for line in text.splitlines() if line.startswith("| colours acc |")]
    assert line.startswith(f"| colours acc | {shots or 0} | 1.5 | 6 | {expected_cell} | ")


def test_a_file_and_the_nine_together(qwen: Path, tasks: Path, documents: Path, results: Results) -> None:
    found = results(qwen, "--tasks", f"{tasks / 'colours.yaml'},rte", "--datasets", documents)
    (entry,) = found["models"]
    assert {"RTE", "colours acc"} <= set(entry["scores"]) and set(found["chance"]["majority"]) == {"RTE"}


def test_a_task_that_is_not_there(
    qwen: Path, refused: Callable[..., str], tasks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = selection._manager((str(tasks),))
    asked = []

    def manager(include: tuple[str, ...] = (), everything: bool = False) -> Any:
        asked.append(everything)
        return small

    monkeypatch.setattr(selection, "_manager", manager)
    line = refused(qwen, "--tasks", "rte,colour", "--include-path", tasks)
    assert "has no task, group or tag 'colour': did you mean colours" in line and asked[:2] == [False, True]
    assert "no task of the lm-evaluation-harness matches 'xyz*'" in refused(qwen, "--tasks", "xyz*")
    assert set(select("our_tag").names) == {"our_tag"}
    assert select("arc_e*,boolq").names == ("arc_easy", "boolq")  # in the table's order


def test_a_text_longer_than_the_context_is_not_asked_for(
    qwen: Path, tasks: Path, refused: Callable[..., str], tmp_path: Path
) -> None:
    definition = yaml.safe_load((tasks / "naming.yaml").read_text())
    definition |= {"task": "long_naming", "generation_kwargs": {"until": ["\n"], "max_gen_toks": CONTEXT}}
    (tmp_path / "long.yaml").write_text(yaml.safe_dump(definition))
    line = refused(qwen, "--tasks", tmp_path / "long.yaml")
    assert f"long_naming lets a model write {CONTEXT} tokens, and qwen has a context of {CONTEXT}: leave" in line
    (tmp_path / "long.yaml").write_text(yaml.safe_dump(definition | {"unsafe_code": True}))
    assert "long_naming runs code that the model writes" in refused(qwen, "--tasks", tmp_path / "long.yaml")
    (tmp_path / "long.yaml").write_text(yaml.safe_dump(definition | {"dataset_kwargs": {"data_files": "/nowhere"}}))
    assert "the documents of" in refused(qwen, "--tasks", tmp_path / "long.yaml")


def test_a_task_of_ones_own_does_not_take_the_name_of_the_nine(
    qwen: Path, tasks: Path, refused: Callable[..., str], tmp_path: Path
) -> None:
    definition = yaml.safe_load((tasks / "colours.yaml").read_text())
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(definition | {"task": "rte"}))
    for words in (("--tasks", "rte", "--include-path", tmp_path), ("--tasks", tmp_path / "mine.yaml")):
        assert "rte is one of the paper's nine tasks: give yours" in refused(qwen, *words)
    (tmp_path / "mine.yaml").write_text("just a text")
    assert "mine.yaml is no task file (" in refused(qwen, "--tasks", tmp_path / "mine.yaml")


def test_shots_that_are_not_as_asked_for_are_told(tasks: Path, tmp_path: Path) -> None:
    definition = yaml.safe_load((tasks / "colours.yaml").read_text())
    del definition["training_split"]
    for name, change in (("fixed", {"num_fewshot": 0}), ("alone", {})):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(definition | {"task": name} | change))
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    loaded = load(Selection(("fixed", "alone"), manager), None, tmp_path, num_fewshot=3)
    assert [task.config.num_fewshot for task in loaded.tasks.values()] == [0, 3]
    assert [note.partition(":")[0] for note in loaded.notes] == ["fixed", "alone"]
    assert "never overrides" in loaded.notes[0] and "documents that are scored" in loaded.notes[1]


@pytest.mark.slow
def test_every_definition_of_the_harness_is_found() -> None:
    found = select("mmlu,ai2_arc,gsm8k")
    assert found.names == ("mmlu", "ai2_arc", "gsm8k") and len(found.manager.all_tasks) > 10_000
    with pytest.raises(Exception, match="no task, group or tag 'hellaswagg': did you mean hellaswag"):
        select("hellaswagg")


TEXT = "It was the best of times,\nit was the  worst of times: Ödipus said so."


def test_typos_change_a_share_of_the_letters() -> None:
    letters = sum(letter.isalpha() for letter in TEXT)
    once = Perturbation("typos", 0.1)(TEXT, None)
    assert once == Perturbation("typos", 0.1)(TEXT, None) != TEXT
    assert re.findall(r"[^\w]", once.replace(" ", "")) == re.findall(r"[^\w]", TEXT.replace(" ", ""))
    assert abs(len(once) - len(TEXT)) <= round(0.1 * letters)
    assert Perturbation("typos", 0.2)(TEXT, None) != once
    kinds = {len(Perturbation("typos", 0.001)(f"abc {n}", None)) - len(f"abc {n}") for n in range(40)}
    assert kinds == {-1, 0, 1}  # left out, another or swapped, doubled
    assert Perturbation("typos", 1.0)("12 ?", None) == "12 ?" and Perturbation("typos", 0.5)("", None) == ""


def test_words_change_places_and_nothing_else() -> None:
    shuffled = Perturbation("word-shuffle", 1.0)(TEXT, None)
    assert sorted(shuffled.split()) == sorted(TEXT.split()) and shuffled != TEXT
    assert re.findall(r"\s+", shuffled) == re.findall(r"\s+", TEXT)
    few = Perturbation("word-shuffle", 0.01)("one two three four five six", None).split()
    moved = [(old, new) for old, new in zip("one two three four five six".split(), few, strict=True) if old != new]
    assert len(moved) == 2
    assert Perturbation("word-shuffle", 0.5)("  alone ", None) == "  alone "


def test_tokens_are_left_out(hybrid: Path) -> None:
    tokenizer = open_model(hybrid).tokenizer
    tokens = len(tokenizer(TEXT, add_special_tokens=False).input_ids)
    dropped = Perturbation("token-drop", 0.25)(TEXT, tokenizer)
    remaining = iter(TEXT)
    assert all(letter in remaining for letter in dropped)  # in order
    left = len(tokenizer(dropped, add_special_tokens=False).input_ids)
    assert 0.6 * tokens < left < 0.85 * tokens
    assert Perturbation("token-drop", 1.0)(TEXT, tokenizer) == ""


def test_perturbed_scores_and_their_change_by_document(
    hybrid: Path, documents: Path, tasks: Path, results: Results, tmp_path: Path
) -> None:
    names = f"arc_easy,lambada_openai,wikitext,{tasks / 'naming.yaml'}"
    words = (hybrid, "--tasks", names, "--datasets", documents, "--perturb", "typos=0.3", "word-shuffle")
    found = results(*words)
    (entry,) = found["models"]
    assert "samples" not in entry["harness"]
    assert list(entry["perturbed"]) == ["typos, 30 % of letters", "word-shuffle, 10 % of words"]
    typos = entry["perturbed"]["typos, 30 % of letters"]
    assert (typos["kind"], typos["share"], typos["seed"]) == ("typos", 0.3, 0)
    assert "Wiki ppl" not in typos["scores"] and "naming exact_match" in typos["changes"]
    for title, value in typos["scores"].items():
        if not title.endswith("stderr"):
            assert typos["changes"][title] == pytest.approx(value - entry["scores"][title])
    assert typos["scores"]["LAMBADA ppl"] != entry["scores"]["LAMBADA ppl"]
    text = (tmp_path / "out" / "results.md").read_text()
    assert "## Perturbed: typos, 30 % of letters (change from the clean score)" in text
    assert results(*words)["models"][0]["perturbed"] == entry["perturbed"]  # the same again


def test_the_change_of_a_figure_has_the_paired_error() -> None:
    from lm_eval.api.metrics import mean, perplexity

    from deconattn.evaluation.robustness import changes

    class Task:
        def aggregation(self) -> dict[str, Any]:
            return {"acc": mean, "perplexity": perplexity, "f1": max}

    generator = torch.Generator().manual_seed(0)
    before = (-3 * torch.rand(40, generator=generator)).tolist()
    after = [value - 0.2 * (place % 3) for place, value in enumerate(before)]

    def result(logs: list[float], right: list[int]) -> dict[str, Any]:
        samples = [
            {"filter": "none", "perplexity": a, "acc": b, "f1": (0, 1)} for a, b in zip(logs, right, strict=True)
        ]
        metrics = {"perplexity,none": perplexity(logs), "acc,none": mean(right), "f1,none": 0.5}
        return {"results": {"task": metrics}, "samples": {"task": samples}}

    right = [place % 2 for place in range(40)]
    wrong = [value and place > 10 for place, value in enumerate(right)]
    found = changes(result(before, right), result(after, [int(value) for value in wrong]), {"task": Task()})
    differences = [int(new) - old for old, new in zip(right, wrong, strict=True)]
    assert found["task acc"].value == pytest.approx(sum(differences) / 40)
    assert found["task acc"].error == pytest.approx(stdev(differences) / math.sqrt(40))
    assert found["task f1"].error is None
    # The jackknife, which knows nothing of slopes.
    left_out = [
        perplexity(after[:place] + after[place + 1 :]) - perplexity(before[:place] + before[place + 1 :])
        for place in range(40)
    ]
    jackknife = math.sqrt(39 / 40 * sum((value - sum(left_out) / 40) ** 2 for value in left_out))
    assert found["task perplexity"].error == pytest.approx(jackknife, rel=0.05)
    assert found["task perplexity"].error < 0.5 * math.sqrt(2) * perplexity(before) * stdev(before) / math.sqrt(40)


def test_answers_are_never_perturbed(hybrid: Path, documents: Path, tmp_path: Path) -> None:
    from deconattn.evaluation.harness_model import HarnessModel

    stored = open_model(hybrid)
    marks: list[str] = []

    def mark(context: str) -> str:
        marks.append(context)
        return context[::-1]

    wrapped = HarnessModel(stored.load(), stored.tokenizer, batch_size=2, perturb=mark)
    request = lm_eval.api.instance.Instance("loglikelihood", {}, ("abc def", " answer"), 0)
    plain = HarnessModel(stored.load(), stored.tokenizer, batch_size=2)
    turned = lm_eval.api.instance.Instance("loglikelihood", {}, ("fed cba", " answer"), 0)
    assert wrapped.loglikelihood([request], disable_tqdm=True) == plain.loglikelihood([turned], disable_tqdm=True)
    assert marks == ["abc def"] and request.args == ("abc def", " answer")
    whole = lm_eval.api.instance.Instance("loglikelihood_rolling", {}, ("abc def",), 0)
    assert wrapped.loglikelihood_rolling([whole], True) == plain.loglikelihood_rolling([whole], True)
    assert perturbations(["typos", "token-drop=0.5"]) == [Perturbation("typos", 0.1), Perturbation("token-drop", 0.5)]


@torch.no_grad()
def test_an_answer_longer_than_the_context_is_scored_in_parts(hybrid: Path) -> None:
    """By hand: every token after as many as the model may see, in parts of half a context."""
    from deconattn.evaluation.harness_model import HarnessModel

    stored = open_model(hybrid)
    model = stored.load()
    tokens = torch.randint(1, 60, (24,), generator=torch.Generator().manual_seed(0)).tolist()
    context, answer = tokens[:3], tokens[3:]
    wrapped = HarnessModel(model, stored.tokenizer, batch_size=2, max_length=8)
    long, short = wrapped._loglikelihood_tokens([("a", context, answer), ("b", context, answer[:5])], True)
    expected = 0.0
    for start in range(0, len(answer), 4):
        part = answer[start : start + 4]
        seen = (context + answer[:start] + part)[-9:]
        nats = model(torch.tensor([seen[:-1]])).logits[0].log_softmax(-1)
        expected += sum(float(nats[place - len(part), token]) for place, token in enumerate(part))
    assert long[0] == pytest.approx(expected, rel=1e-5)
    [alone] = HarnessModel(model, stored.tokenizer, batch_size=2)._loglikelihood_tokens(
        [("b", context, answer[:5])], True
    )
    assert short == pytest.approx(alone)
