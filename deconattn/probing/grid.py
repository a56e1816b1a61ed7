"""What a request of the command probe means: models to train, in groups that share one learning rate."""

import hashlib
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property

from deconattn.config.pattern import STANDARD, layer_variants
from deconattn.errors import UserError
from deconattn.layers.config import ModelConfig
from deconattn.probes import Task, parse_task, task_class
from deconattn.probing.request import GROWS, UNIFORM, Request

HEAD_DIM = 32
FEED_FORWARD = 2
"""Width of the feed-forward block, in widths of the model."""

INITIALIZER = 0.4
"""Standard deviation of the initial weights, times the square root of the width: the usual 0.02 at 400, and 0.05 at 64,
where 0.02 would leave the first hundreds of steps to the weights' growth."""


@dataclass(frozen=True)
class Ladder:
    """A task at several difficulties, which one model is trained on."""

    tasks: tuple[Task, ...]
    name: str

    @cached_property
    def words(self) -> str:
        """All fields, as :func:`parse_ladders` reads them: the ladder's identity."""
        return f"{self.name}?{self.settings}{'&' if self.settings else ''}{self.axis}={self._levels}"

    @property
    def axis(self) -> str:
        return self.tasks[0].axis

    @property
    def _levels(self) -> str:
        return ",".join(map(str, self.levels))

    @property
    def levels(self) -> tuple[int, ...]:
        return tuple(getattr(task, self.axis) for task in self.tasks)

    @property
    def settings(self) -> str:
        """Fields beside the axis."""
        names = [field.name for field in fields(self.tasks[0]) if field.name != self.axis]
        return "&".join(f"{name}={getattr(self.tasks[0], name)}" for name in names)

    @property
    def longest(self) -> int:
        """Tokens of the longest sample."""
        return max(task.length for task in self.tasks)

    @property
    def vocab_size(self) -> int:
        return max(task.vocab_size for task in self.tasks)


def parse_ladders(words: str) -> list[Ladder]:
    """Return the ladder that `NAME?field=value&axis=value,value` describes: one of all levels, or one a level.

    A task whose samples do not tell its levels apart is trained on one at a time.

    Raises:
        UserError: see :func:`deconattn.probes.parse_task`.
    """
    name, _, query = words.partition("?")
    kind = task_class(name)
    given = [word.partition("=") for word in filter(None, query.split("&"))]
    others = "&".join("".join(word) for word in given if word[0] != kind.axis)
    asked = [level for axis, _, value in given if axis == kind.axis for level in value.split(",")]
    levels = asked or [str(level) for level in kind.levels]
    tasks = {parse_task(f"{name}?{others}&{kind.axis}={level}"): None for level in levels}
    ordered = tuple(sorted(tasks, key=lambda task: getattr(task, kind.axis)))
    return [Ladder((task,), name) for task in ordered] if kind.apart else [Ladder(ordered, name)]


@dataclass(frozen=True)
class Size:
    """Width and depth of a model."""

    width: int
    layers: int

    @classmethod
    def parse(cls, words: str) -> "Size":
        """Read `64x2` (UserError if it is no such thing)."""
        match = re.fullmatch(r"(\d+)x(\d+)", words)
        if not match or not int(match[2]) or not int(match[1]):
            raise UserError(f"--sizes {words}: give WIDTHxLAYERS, such as 64x2")
        width = int(match[1])
        if width % HEAD_DIM and (width > HEAD_DIM or width % 2):
            raise UserError(f"--sizes {words}: give a width that is a multiple of {HEAD_DIM}, or even and less")
        return cls(width, int(match[2]))

    def __str__(self) -> str:
        return f"{self.width}x{self.layers}"


@dataclass(frozen=True)
class Group:
    """Models that share a learning rate: one task, variant, pattern and size, over seeds."""

    ladder: Ladder
    variant: str
    pattern: str
    size: Size

    @property
    def name(self) -> str:
        return f"{self.ladder.name} {self.variant} {self.pattern} {self.size}"

    def model_config(self) -> ModelConfig:
        """Return the model's configuration, which differs between variants by the layers' mixers alone.

        Raises:
            UserError: an unknown variant or pattern.
        """
        from deconattn.mixers import known_names  # with PyTorch

        heads = max(1, self.size.width // HEAD_DIM)
        return ModelConfig(
            vocab_size=self.ladder.vocab_size,
            hidden_size=self.size.width,
            intermediate_size=FEED_FORWARD * self.size.width,
            num_hidden_layers=self.size.layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            head_dim=self.size.width // heads,
            max_position_embeddings=self.ladder.longest,
            layer_variants=layer_variants(self.pattern, self.variant, self.size.layers, known_names()),
            initializer_range=INITIALIZER / self.size.width**0.5,
        )


@dataclass(frozen=True)
class Cell:
    """One model to train."""

    group: Group
    seed: int
    lr: float

    @property
    def name(self) -> str:
        return f"{self.group.name} seed {self.seed} lr {self.lr:g}"

    @property
    def file(self) -> str:
        """Name of its file: what it is in words, and a digest of all that it is."""
        digest = hashlib.sha256(f"{self.group.ladder.words} {self.name}".encode()).hexdigest()[:10]
        return f"{re.sub(r'[^a-z0-9.]+', '-', self.name.lower())}-{digest}.json"


@dataclass(frozen=True)
class Grid:
    """All groups, and the seeds and rates of each."""

    groups: tuple[Group, ...]
    seeds: tuple[int, ...]
    rates: tuple[float, ...]

    def sweep(self, group: Group) -> list[Cell]:
        """Models of the first seed, one a rate."""
        return [Cell(group, self.seeds[0], rate) for rate in self.rates]

    def others(self, group: Group, rate: float) -> list[Cell]:
        """Models of the other seeds, at the rate that was chosen."""
        return [Cell(group, seed, rate) for seed in self.seeds[1:]]

    def models(self, groups: Sequence[Group]) -> int:
        """Return how many models some groups have."""
        return len(groups) * (len(self.rates) + len(self.seeds) - 1)


def spelt_out(request: Request) -> Request:
    """Return a request with every task's fields and all variants, whatever their defaults will be.

    Raises:
        UserError: see :func:`make_grid`.
    """
    _check(request)
    from deconattn.mixers import variant_names  # with PyTorch

    tasks = tuple(ladder.words for words in request.tasks for ladder in parse_ladders(words))
    return replace(request, tasks=tasks, variants=request.variants or variant_names())


def make_grid(request: Request) -> Grid:
    """Return the grid of a request that is spelt out, and whose plugins have been loaded.

    Groups of one task follow each other, so that a worker has its samples at hand. Standard attention has no pattern.

    Raises:
        UserError: a flag that makes no sense, and the remedy.
    """
    groups: dict[Group, None] = {}
    ladders: dict[Task, Ladder] = {}
    for words in request.tasks:
        for ladder in parse_ladders(words):
            for task in ladder.tasks:
                # Their models differ, and a row of results does not say of which it is.
                if (other := ladders.setdefault(task, ladder)) != ladder:
                    raise UserError(
                        f"--tasks {other.words} and {ladder.words} share {task}: give each an --out of its own"
                    )
            for size in map(Size.parse, request.sizes):
                for pattern in request.patterns:
                    for variant in request.variants:
                        group = Group(ladder, variant, UNIFORM if variant == STANDARD else pattern, size)
                        group.model_config()
                        groups[group] = None
    return Grid(tuple(groups), tuple(range(1, request.seeds + 1)), request.lr)


def _check(request: Request) -> None:
    for flag, number in (("seeds", request.seeds), ("steps", request.steps), ("batch-size", request.batch_size)):
        if number < 1:
            raise UserError(f"--{flag} {number}: give 1 or more")
    for name in ("tasks", "patterns", "sizes", "lr"):
        if not getattr(request, name):
            raise UserError(f"--{name} names nothing: give one or more")
    for rate in request.lr:
        if not 0 < rate < 10:
            raise UserError(f"--lr {rate:g}: give rates above zero, such as 1e-3 3e-3")
    for name in (*GROWS, "lr"):
        values = getattr(request, name)
        for value in values:
            if values.count(value) > 1:
                raise UserError(f"--{name} {value} is given twice: give it once")
    for pattern in request.patterns:
        if any(mark in pattern for mark in ",*["):
            raise UserError(f"--patterns {pattern} names variants itself: give a pattern such as even or 1:3")


def costs(grid: Grid) -> list[float]:
    """Return about what each group costs, to deal them to shards by: the elements of a step's hidden states."""
    lengths = [statistics.fmean(task.length for task in group.ladder.tasks) for group in grid.groups]
    sizes = [group.size.width * group.size.layers for group in grid.groups]
    return [length * size for length, size in zip(lengths, sizes, strict=True)]
