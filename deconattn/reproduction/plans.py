"""A table or figure of the paper as runs, and what is measured of each; pure functions."""

import dataclasses
import math
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Literal

from deconattn.config.pattern import STANDARD
from deconattn.errors import UserError
from deconattn.pages.palette import COLOURS

Table = Literal["1", "2", "3", "4", "figure3", "figure4"]
Kind = Literal["train", "choose", "evaluate", "skip", "contexts", "analyze"]
"""Kind of job: `choose` takes the best rate of a sweep, `skip` evaluates a model without its variant layers, `contexts`
at several context lengths."""

UNIFORM, EVEN = "uniform", "even"
NINE = ("even", "odd", "top", "middle", "bottom", "25%", "first", "last", "bilateral")
SIX = tuple(variant for variant in COLOURS if variant != STANDARD)
PLANNED_FLAGS = ("--size", "--variant", "--pattern", "--seed", "--tokens", "--data", "--save", "--resume")
"""Flags of a training that the plan gives each run."""
TRIAL_SIZE, TRIAL_LIMIT = "tiny", 200
"""Size for trials, not in the paper, and the documents of a benchmark that it is scored on. Its runs take the preset's
number of tokens, and all documents would take longer than training does."""


@dataclass(frozen=True)
class Request:
    """Flags of a reproduction. None of it may change once a folder has been begun with it, but that seeds are added."""

    table: tuple[Table, ...] = ("1",)
    """Tables and figures of the paper; a run that several need is trained once."""
    size: tuple[str, ...] = ()
    """Sizes of model. By default the paper's: 500m; 1.7b for table 2; 70m, 160m and 500m for figure 4."""
    tokens: tuple[int, ...] = ()
    """Tokens that each run trains on; several train each model on each number, for loss over tokens. By default the
    paper's: 15e9, and 45e9 for 1.7b."""
    variants: tuple[str, ...] = ()
    """Variants beside standard. By default the paper's: all six; rndemb and nonapproximate for figure 3."""
    patterns: tuple[str, ...] = ()
    """Patterns of the variants' layers. By default the paper's: uniform and even; even for table 2; uniform for
    table 4; the nine of table 11 for figure 3."""
    seed: int = 1234
    """First seed."""
    seeds: int = 1
    """Number of seeds, counted on from --seed. Runs of one seed have the same data order and, where they share tensors,
    the same initial weights. A folder that has been begun takes more."""
    lr_sweep: tuple[float, ...] = ()
    """Peak learning rates. Each model is trained at each of them with the first seed; the best by validation loss is
    its first seed's model, and the rate of its other seeds."""
    key_value_heads: int = 2
    """Key/value heads in table 3."""
    context_lengths: tuple[int, ...] = (128, 256, 512, 1024, 2048)
    """Context lengths of table 4, in tokens; those longer than the training sequences are left out."""
    data: tuple[str, ...] = ()
    """Packed corpora to train on, each DIR or DIR:WEIGHT; none is the bundled demo corpus."""
    train: str = ""
    """More flags of a training for every run, in one word: --train="--micro-batch-size 16 --compile"."""
    datasets: Path | None = None
    """Folder with the benchmarks' documents (docs/evaluation.md); by default the hub's."""
    tasks: str = ""
    """Benchmarks, comma-separated; by default the paper's nine."""
    limit: int | None = None
    """Score only the first so many documents of a benchmark: for trying things, the scores are not comparable. By
    default, and by 0, all; where all models are tiny, by default 200."""
    analysis: bool = True
    """Measure the attention indicators, too."""


@dataclass(frozen=True)
class Run:
    """A model with a seed: one training, but for the first seed of a sweep, which is the best of several.

    Attributes:
        pattern: pattern of the variant's layers; `uniform` for standard attention.
        tokens: None: as many as a training takes by default.
        key_value_heads: 0: as many as query heads.
        first_seed: the plan's first seed where this one is another; None for the first.
        lr: its peak learning rate, of a trial of a sweep.
        swept: its rate is what the trials of :attr:`first` say.
        several_tokens: the plan has the same model with other numbers of tokens.
    """

    size: str
    variant: str
    pattern: str
    seed: int
    tokens: int | None
    key_value_heads: int = 0
    first_seed: int | None = None
    lr: float | None = None
    swept: bool = False
    several_tokens: bool = False

    @property
    def name(self) -> str:
        """Name of the run's folder, unique in a plan. It does not depend on how many seeds the plan has."""
        heads = f"-kv{self.key_value_heads}" if self.key_value_heads else ""
        pattern = self.pattern.replace("%", "percent").replace(":", "to").replace("*", "x").replace(",", "-")
        seed = "" if self.first_seed is None else f"-seed{self.seed}"
        rate = "" if self.lr is None else f"-lr{self.lr}"
        tokens = f"-{self.tokens}tokens" if self.several_tokens else ""
        return f"{self.size}-{self.variant}-{pattern}{heads}{tokens}{seed}{rate}"

    @property
    def flags(self) -> list[str]:
        """Training flags that are specific to this run."""
        flags = ["--size", self.size, "--variant", self.variant, "--pattern", self.pattern, "--seed", str(self.seed)]
        if self.key_value_heads:
            flags += ["--num-key-value-heads", str(self.key_value_heads)]
        if self.lr is not None:
            flags += ["--lr", str(self.lr)]
        return flags if self.tokens is None else [*flags, "--tokens", str(self.tokens)]

    @property
    def first(self) -> "Run":
        """The same model with the first seed."""
        return self if self.first_seed is None else dataclasses.replace(self, seed=self.first_seed, first_seed=None)

    @property
    def model(self) -> "Run":
        """What all seeds and trials of a model have in common."""
        return dataclasses.replace(self.first, lr=None, swept=False)

    @property
    def best(self) -> "Run":
        """The first seed's model that is the best of the trials of which this is one."""
        return dataclasses.replace(self.model, swept=True)

    def with_seed(self, seed: int) -> "Run":
        """The same model with another seed than the first."""
        return dataclasses.replace(self, seed=seed, first_seed=self.seed)

    def at(self, lr: float) -> "Run":
        """Return it at a rate: a trial of its sweep, or, of a later seed, itself as it trains."""
        return dataclasses.replace(self, lr=lr, swept=False)


@dataclass(frozen=True)
class Entry:
    """A row of a table: a model, by its run of the first seed, and what of it is shown."""

    run: Run
    kind: Kind


@dataclass(frozen=True)
class PlannedJob:
    """One command: something done with a run."""

    run: Run
    kind: Kind

    @property
    def name(self) -> str:
        return f"{self.run.name} {self.kind}"


@dataclass(frozen=True)
class ReproductionPlan:
    """Tables to fill, and the jobs that fill them.

    Attributes:
        tables: the rows of each, in order.
        jobs: a run's training before what is measured of it, and all of one seed before the next.
        seeds: the first is that of the tables' entries.
    """

    tables: dict[Table, tuple[Entry, ...]] = field(default_factory=dict)
    jobs: tuple[PlannedJob, ...] = ()
    seeds: tuple[int, ...] = ()

    @property
    def runs(self) -> tuple[Run, ...]:
        """All that is trained."""
        return tuple(job.run for job in self.jobs if job.kind == "train")

    def seeded(self, run: Run) -> dict[int, Run]:
        """A first seed's run by seed, with those of the others."""
        return {seed: run if seed == run.seed else run.with_seed(seed) for seed in self.seeds}


def make_plan(request: Request) -> ReproductionPlan:
    """The rows of the tables that are asked for, and the jobs that fill them.

    Raises:
        UserError: flags that do not go together, or a table without a row to compare.
    """
    check(request)
    tables = {table: tuple(_entries(request, table)) for table in dict.fromkeys(request.table)}
    entries = [entry for rows in tables.values() for entry in rows]
    seeds = tuple(range(request.seed, request.seed + request.seeds))
    plan, jobs = ReproductionPlan(tables, (), seeds), []
    for seed in seeds:
        for first in dict.fromkeys(entry.run for entry in entries):
            run = plan.seeded(first)[seed]
            if run.swept and seed == request.seed:
                jobs += [PlannedJob(run.at(lr), "train") for lr in request.lr_sweep]
            kinds: list[Kind] = ["choose" if run.swept and seed == request.seed else "train"]
            kinds += dict.fromkeys(entry.kind for entry in entries if entry.run == first)
            kinds += ["analyze"] if request.analysis else []
            jobs += [PlannedJob(run, kind) for kind in kinds]
    return dataclasses.replace(plan, jobs=tuple(jobs))


def runs_of(plan: ReproductionPlan) -> tuple[Run, ...]:
    """All runs that a job names: those that are trained, and the models that are the best of a sweep."""
    return tuple(dict.fromkeys(job.run for job in plan.jobs))


def with_limit(request: Request, begun: Request | None) -> Request:
    """Settle `--limit` where it is not given: by size, or as the folder has it that was begun so."""
    if request.limit is not None or set(request.size) != {TRIAL_SIZE}:
        return request
    limit = TRIAL_LIMIT if begun is None or begun.limit not in (None, TRIAL_LIMIT) else begun.limit
    return dataclasses.replace(request, limit=limit)


def check(request: Request) -> None:
    """Raises UserError for what is wrong with the flags alone."""
    if not request.table:
        raise UserError("--table names nothing: give 1, 2, 3, 4, figure3 or figure4")
    for number in request.tokens:
        if number < 1:
            raise UserError(f"--tokens {number}: give 1 or more")
    if request.limit is not None and request.limit < 0:
        raise UserError(f"--limit {request.limit}: give 1 or more, or 0 for all documents")
    for length in request.context_lengths:
        if length < 1:
            raise UserError(f"--context-lengths {length}: give numbers above zero")
    if request.key_value_heads < 1:
        raise UserError(f"--key-value-heads {request.key_value_heads}: give 1 or more")
    if request.seeds < 1:
        raise UserError(f"--seeds {request.seeds}: give 1 or more")
    for lr in request.lr_sweep:
        if not (math.isfinite(lr) and lr > 0):
            raise UserError(f"--lr-sweep {lr}: give numbers above zero")
    if len(request.lr_sweep) == 1:
        raise UserError(f"--lr-sweep {request.lr_sweep[0]} is one rate: give two or more, or --train='--lr RATE'")
    for word in more_flags(request):
        flag = word.split("=")[0].replace("_", "-")
        if flag == "--lr" and request.lr_sweep:
            raise UserError("--train --lr: --lr-sweep gives each run its rate; leave one of them out")
        if flag in PLANNED_FLAGS:
            raise UserError(f"--train {flag}: the plan gives each run its {flag}; leave it out")
    for name, values in (
        ("--variants", request.variants),
        ("--patterns", request.patterns),
        ("--size", request.size),
        ("--tokens", request.tokens),
        ("--lr-sweep", tuple(str(lr) for lr in request.lr_sweep)),
    ):
        repeated = [value for value in values if values.count(value) > 1]
        if repeated:
            raise UserError(f"{name} {repeated[0]} is given twice: give it once")


def more_flags(request: Request) -> list[str]:
    """`--train` as words (UserError if its quotes do not match)."""
    try:
        return shlex.split(request.train)
    except ValueError as error:
        raise UserError(f"--train {request.train!r} cannot be read ({error}): match its quotes") from None


def training_flags(request: Request, run: Run) -> list[str]:
    """All of a training's flags for a run, but where it is saved."""
    data = ["--data", *request.data] if request.data else []
    return [*run.flags, *data, *more_flags(request)]


def first_corpus(request: Request) -> str | None:
    """The folder of the first corpus, without its weight; None for the bundled one."""
    if not request.data:
        return None
    folder, colon, _ = request.data[0].rpartition(":")
    return request.data[0] if not colon or Path(request.data[0]).is_dir() else folder


def _entries(request: Request, table: Table) -> Iterable[Entry]:
    heads = request.key_value_heads if table == "3" else 0
    shown: Kind = "contexts" if table == "4" else "evaluate"
    for size, tokens in product(request.size or _sizes(table), request.tokens or (None,)):
        standard = Run(
            size,
            STANDARD,
            UNIFORM,
            request.seed,
            tokens or _tokens(size),
            heads,
            swept=bool(request.lr_sweep),
            several_tokens=len(request.tokens) > 1,
        )
        yield Entry(standard, shown)
        for variant, pattern in product(_variants(request, table), request.patterns or _patterns(table)):
            run = dataclasses.replace(standard, variant=variant, pattern=pattern)
            yield Entry(run, shown)
            if table == "1" and pattern != UNIFORM:
                yield Entry(run, "skip")


def _sizes(table: Table) -> Sequence[str]:
    return {"2": ("1.7b",), "figure4": ("70m", "160m", "500m")}.get(table, ("500m",))


def _tokens(size: str) -> int | None:
    """Table 9."""
    if size == TRIAL_SIZE:
        return None
    return 45_000_000_000 if size == "1.7b" else 15_000_000_000


def _variants(request: Request, table: Table) -> Sequence[str]:
    if request.variants:
        return [variant for variant in request.variants if variant != STANDARD]
    return ("rndemb", "nonapproximate") if table == "figure3" else SIX


def _patterns(table: Table) -> Sequence[str]:
    return {"2": (EVEN,), "4": (UNIFORM,), "figure3": NINE}.get(table, (UNIFORM, EVEN))
