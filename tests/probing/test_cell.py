"""The training of one model: its samples, its loss, its ends."""

import math

import pytest
import torch

from deconattn.model.causal_lm import CausalLM
from deconattn.model.init import initialize
from deconattn.ops.cross_entropy import IGNORED
from deconattn.probes import stream
from deconattn.probing import cell as training
from deconattn.probing import samples as sampling
from deconattn.probing.cell import CHECK_EVERY, Diverged, Stopped, rate_at, train_cell
from deconattn.probing.grid import Cell, Group, Ladder, Size, parse_ladders
from deconattn.probing.request import UNIFORM
from deconattn.probing.samples import ASKED, Samples

CPU = torch.device("cpu")
EASY = "memorise?facts=2,3&context=4"


def ladder(words: str) -> Ladder:
    (found,) = parse_ladders(words)
    return found


def cell(words: str = EASY, variant: str = "mlp", lr: float = 1e-2) -> Cell:
    return Cell(Group(ladder(words), variant, UNIFORM, Size(16, 1)), 1, lr)


def test_difficulties_take_turns_and_samples_are_new():
    tasks = ladder("copy?symbols=3,5").tasks
    samples = Samples(ladder("copy?symbols=3,5"), 2, 4)
    for step, (task, first) in enumerate([(tasks[0], 0), (tasks[1], 0), (tasks[0], 4)]):
        tokens, labels = task.batch(stream(2, "train"), range(first, first + 4))
        for _ in range(2):  # drawn, and kept
            questions = samples.step(step)
            assert questions.tokens.tolist() == tokens.tolist()
            assert questions.answers.tolist() == labels[labels != IGNORED].tolist()


def test_samples_beyond_what_is_kept_are_the_same(monkeypatch):
    words = ladder("copy?symbols=3")
    expected = [Samples(words, 1, 2).step(step).tokens.tolist() for step in (0, 1, 2)]
    monkeypatch.setattr(sampling, "KEPT_BYTES", 1)
    samples = Samples(words, 1, 2)
    assert [samples.step(step).tokens.tolist() for step in (0, 1, 2)] == expected


def test_accuracies_are_of_many_held_out_positions():
    task = ladder("copy?symbols=3").tasks[0]
    batches = Samples(ladder("copy?symbols=3"), 1, 2).held_out(task)
    assert sum(len(batch.answers) for batch in batches) >= ASKED
    tokens, _ = task.batch(stream(1, "held-out"), range(len(batches[0].tokens)))
    assert batches[0].tokens.tolist() == tokens.tolist()


def test_the_loss_is_of_what_is_asked_alone():
    (task,) = ladder("mqar?pairs=2&context=12&alphabet=8").tasks
    asked = cell("mqar?pairs=2&context=12&alphabet=8", "standard")
    model = CausalLM(asked.group.model_config())
    initialize(model, 1)
    tokens, labels = (torch.from_numpy(part) for part in task.batch(stream(1, "train"), range(4)))
    questions = Samples(asked.group.ladder, 1, 4).step(0).to(CPU)
    logits = model.logits(tokens)
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED)
    torch.testing.assert_close(training._loss(model, questions), expected)
    kept = labels != IGNORED
    right = (logits.argmax(-1) == labels)[kept].sum()
    assert training._right(model, questions)[0] == right


def test_training_ends_once_all_is_solved():
    found = train_cell(cell(), 400, 8, CPU)
    assert found.solved_at == found.steps
    assert found.steps < 400
    assert found.steps % CHECK_EVERY == 0
    assert found.tokens == found.steps * 8 * 4
    assert [measure.accuracy for measure in found.measures] == [1, 1]
    assert train_cell(cell(), 400, 8, CPU).measures == found.measures
    unsolved = train_cell(cell(lr=1e-5), 4, 8, CPU)
    assert (unsolved.steps, unsolved.solved_at) == (4, None)


def test_a_loss_that_is_no_number_is_told(monkeypatch):
    monkeypatch.setattr(training, "_loss", lambda model, _: model.lm_head.weight.sum() * math.nan)
    with pytest.raises(Diverged, match="by step 3"):
        train_cell(cell(), 3, 8, CPU)


def test_a_stop_is_heard_before_the_next_step():
    with pytest.raises(Stopped):
        train_cell(cell(), 400, 8, CPU, stop=lambda: True)


def test_the_rate_rises_and_falls():
    rates = [rate_at(step, 100) for step in range(100)]
    assert rates[0] == 0.1
    assert max(rates) == rates[9] == rates[10] == 1
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] < 0.01
    assert rate_at(0, 1) == 1
