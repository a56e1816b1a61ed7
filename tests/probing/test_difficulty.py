"""Each task's axis of difficulty moves the accuracy of a trained model."""

import pytest
import torch

from deconattn.probes import task_names
from deconattn.probing.cell import train_cell
from deconattn.probing.grid import Cell, Group, Size, parse_ladders
from deconattn.probing.request import UNIFORM

TRAININGS = {
    "mqar": ("mqar?pairs=2,16&alphabet=16&context=16", 300),
    "induction": ("induction?context=8,128", 100),
    "copy": ("copy?symbols=2,48", 150),
    "selective-copy": ("selective-copy?context=8,96", 200),
    "fuzzy-recall": ("fuzzy-recall?pairs=1,8&alphabet=16", 200),
    "compress": ("compress?symbols=1,5", 200),
    "memorise": ("memorise?facts=16,8192", 150),
    "parity": ("parity?bits=2,32", 300),
    "s5": ("s5?steps=1,16", 200),
    "previous-token": ("previous-token?gap=1,40", 40),
    "positional-recall": ("positional-recall?context=2,64", 200),
    "needle": ("needle?context=4,128&needles=2&digits=1", 300),
}
"""Two difficulties of each task, and steps that teach the easier one or begin to."""


@pytest.mark.slow
@pytest.mark.parametrize("name", task_names())
def test_the_harder_one_is_answered_worse(name: str) -> None:
    words, steps = TRAININGS[name]
    accuracies = []
    for ladder in parse_ladders(words):
        cell = Cell(Group(ladder, "standard", UNIFORM, Size(32, 2)), seed=1, lr=5e-3)
        accuracies += [measure.accuracy for measure in train_cell(cell, steps, 16, torch.device("cpu")).measures]
    easy, hard = accuracies
    assert easy > hard + 0.1, accuracies
