"""Tasks: solvable by hand, not from a shuffled context, and the same whenever they are asked."""

import dataclasses

import numpy as np
import pytest

from deconattn.errors import UserError
from deconattn.ops.cross_entropy import IGNORED
from deconattn.probes import Task, parse_task, register_task, task_class, task_names
from tests.probes.solvers import SOLVERS, WITHOUT_CONTEXT

CHANCE = {"parity": 0.5, "compress": 0.2, "memorise": 0.1, "copy": 0.12, "selective-copy": 0.45, "needle": 0.2}
"""Accuracy that no more than the multiset of the tokens gives, an upper bound; 0.1 where none is named."""


def accuracy(name: str, task: Task, shuffled: bool, samples: int = 100) -> float:
    right = asked_in_all = 0
    generator = np.random.default_rng(0)
    for index in range(samples):
        tokens, labels = task.sample(1, index)
        asked = np.flatnonzero(labels != IGNORED)
        if shuffled:
            end = len(tokens) if name in WITHOUT_CONTEXT else asked[0]
            tokens[:end] = generator.permutation(tokens[:end])
        try:
            answers = SOLVERS[name](task, tokens.tolist(), asked.tolist())
        except (ValueError, IndexError):  # a shuffled context may hold nothing that a solver looks for
            assert shuffled
            answers = []
        right += sum(answer == label for answer, label in zip(answers, labels[asked].tolist(), strict=False))
        asked_in_all += len(asked)
    return right / asked_in_all


@pytest.mark.parametrize("name", task_names())
def test_a_solver_by_hand_is_right_at_every_level(name: str):
    kind = task_class(name)
    for level in kind.levels:
        assert accuracy(name, kind(**{kind.axis: level}), shuffled=False, samples=20) == 1


@pytest.mark.parametrize("name", task_names())
def test_a_shuffled_context_gives_chance(name: str):
    assert accuracy(name, task_class(name)(), shuffled=True) <= CHANCE.get(name, 0.1)


@pytest.mark.parametrize("name", task_names())
def test_samples_are_functions_of_seed_and_index(name: str):
    task = task_class(name)()
    tokens, labels = task.batch(3, range(4, 8))
    assert tokens.shape == labels.shape == (4, task.length)
    assert tokens.dtype == labels.dtype == np.int64
    for row, index in ((3, 7), (0, 4)):
        again = parse_task(str(task)).sample(3, index)
        assert np.array_equal(again[0], tokens[row])
        assert np.array_equal(again[1], labels[row])
    assert not np.array_equal(task.sample(4, 4)[0], tokens[0])
    assert len({row.tobytes() for row in tokens}) == 4
    many = [task.sample(0, index) for index in range(50)]
    told = np.array([tokens for tokens, _ in many])
    said = np.array([labels for _, labels in many])
    assert 0 <= told.min() <= told.max() < task.vocab_size
    assert ((said == IGNORED) | ((said >= 0) & (said < task.vocab_size))).all()
    assert (said != IGNORED).any(axis=1).all()


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("mqr", "'mqr'"),
        ("mqar?pair=3", "'pair'"),
        ("mqar?pairs=many", "'many'"),
        ("mqar?pairs=-1", "'-1'"),
        ("mqar?pairs=0", "pairs=0"),
        ("mqar?pairs=80", "pairs=80"),
        ("induction?context=2", "context=2"),
        ("selective-copy?symbols=99", "symbols=99"),
        ("fuzzy-recall?pairs=17", "pairs=17"),
        ("compress?symbols=40", "symbols=40"),
        ("s5?objects=7", "objects=7"),
        ("previous-token?gap=64", "gap=64"),
        ("needle?context=8", "needles=4"),
    ],
)
def test_what_cannot_be_is_one_line(words: str, named: str):
    with pytest.raises(UserError, match=named.replace("?", r"\?")) as error:
        parse_task(words)
    assert "\n" not in str(error.value)


def test_registering():
    @dataclasses.dataclass(frozen=True)
    class Mine(Task):
        size: int = 1

    with pytest.raises(TypeError, match="axis"):
        register_task("mine")(Mine)
    Mine.axis = "size"
    with pytest.raises(ValueError, match="already registered"):
        register_task("mqar")(Mine)
    assert set(task_names()) == set(SOLVERS)
