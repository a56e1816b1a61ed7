"""Contract of a task, and the tasks by name."""

import dataclasses
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from deconattn.errors import UserError
from deconattn.ops.cross_entropy import IGNORED

Row = npt.NDArray[np.int64]
"""Token ids or labels of one sample, int64 `[length]`."""
BLANK = 0
"""The token that says nothing, in every task."""
TaskClass = TypeVar("TaskClass", bound="type[Task]")
_REGISTRY: dict[str, "type[Task]"] = {}


@dataclass(frozen=True)
class Task(ABC):
    """A synthetic task at one difficulty; its fields are what makes it harder or easier.

    A subclass is a frozen dataclass of integers with defaults, each with a docstring, and gives `length`,
    `vocab_size` and :meth:`draw`. Whatever differs between samples comes from the generator.

    Attributes:
        axis: name of the field that difficulty is measured by.
        levels: its values in a grid, from easy to hard. Ours are such that attention of 2 layers, 64 wide, can learn
            the easier ones in about 1000 steps, where it can at all.
        apart: samples do not tell which level they are of, so that a model can learn one level only.
    """

    axis: ClassVar[str]
    levels: ClassVar[tuple[int, ...]]
    apart: ClassVar[bool] = False

    @property
    @abstractmethod
    def length(self) -> int:
        """Tokens in a sample."""

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Number of token ids, :data:`BLANK` among them."""

    @property
    def chance(self) -> float | None:
        """Accuracy of always giving the likeliest answer, whatever the sample says; None: not known."""
        return None

    @abstractmethod
    def draw(self, generator: np.random.Generator) -> tuple[Row, Row]:
        """Draw a sample: its tokens, and at each position what is to be said there, -100 where nothing is asked."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if getattr(self, field.name) < 1:
                self.refuse(field.name, "must be at least 1")

    def refuse(self, field: str, why: str) -> None:
        """Raise UserError about a field."""
        raise UserError(f"probe {task_name(type(self))}: {field}={getattr(self, field)}: it {why}")

    def sample(self, seed: int, index: int) -> tuple[Row, Row]:
        """Return tokens and labels of sample `index` of the stream `seed`: the same whenever and wherever it is asked.

        Philox counts, so that no sample depends on those before it.
        """
        return self.draw(np.random.Generator(np.random.Philox(key=_key(self, seed), counter=[0, 0, index, 0])))

    def batch(self, seed: int, indices: Sequence[int]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return tokens and labels of several samples, int64 `[B, length]` each."""
        rows = [self.sample(seed, index) for index in indices]
        return np.stack([tokens for tokens, _ in rows]), np.stack([labels for _, labels in rows])

    def __str__(self) -> str:
        """Return the words that :func:`parse_task` reads, defaults included: a task's identity."""
        fields = "&".join(f"{field.name}={getattr(self, field.name)}" for field in dataclasses.fields(self))
        return f"{task_name(type(self))}?{fields}"


@lru_cache(maxsize=64)
def _key(task: Task, seed: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{task}:{seed}".encode()).digest()[:16], "little")


Part = Literal["train", "check", "held-out"]


def stream(seed: int, part: Part) -> int:
    """Return the stream of samples that a run of a seed trains on, or is measured on meanwhile or at its end."""
    return 3 * seed + ("train", "check", "held-out").index(part)


def nothing_asked(length: int) -> Row:
    """Return labels for a sample that nothing is asked of yet."""
    return np.full(length, IGNORED, dtype=np.int64)


def register_task(name: str) -> Callable[[TaskClass], TaskClass]:
    """Class decorator: make a task known as `name`.

    Raises:
        ValueError: the name is taken by a class of another module.
        TypeError: the class has no axis, or it is none of its fields.
    """

    def add(task: TaskClass) -> TaskClass:
        known = _REGISTRY.get(name)
        if known is not None and (known.__module__, known.__qualname__) != (task.__module__, task.__qualname__):
            raise ValueError(f"task {name!r} is already registered by {known.__module__}: give it another name")
        if getattr(task, "axis", None) not in {field.name for field in dataclasses.fields(task)}:
            raise TypeError(f"task {name!r}: `axis` must name the field that difficulty is measured by")
        _REGISTRY[name] = task
        return task

    return add


def task_names() -> tuple[str, ...]:
    """Return all registered names, in order of registration."""
    return tuple(_REGISTRY)


def task_class(name: str) -> type[Task]:
    """Return the task registered as `name`.

    Raises:
        UserError: there is none.
    """
    if name not in _REGISTRY:
        raise UserError(f"no probe {name!r}: choose one of {', '.join(_REGISTRY)}, or give --plugin")
    return _REGISTRY[name]


def task_name(task: type[Task]) -> str:
    """Return the name that a class is registered as, or the class's own."""
    return next((name for name, known in _REGISTRY.items() if known is task), task.__name__)


def parse_task(words: str) -> Task:
    """Return the task that `NAME` or `NAME?field=value&field=value` describes, such as `mqar?pairs=16`.

    Raises:
        UserError: no such task or field, or a value that it cannot have.
    """
    name, _, query = words.partition("?")
    task = task_class(name)
    known = {field.name for field in dataclasses.fields(task)}
    values: dict[str, int] = {}
    for word in filter(None, query.split("&")):
        field, _, value = word.partition("=")
        if field not in known:
            raise UserError(f"probe {words!r}: {name} has no {field!r}: its fields are {', '.join(sorted(known))}")
        if not value.isascii() or not value.isdigit():
            raise UserError(f"probe {words!r}: {field}={value!r} is no whole number")
        values[field] = int(value)
    return task(**values)
