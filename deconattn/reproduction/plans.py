"""A table or figure of the paper as runs, and what is measured of each; pure functions."""

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from deconattn.config.pattern import STANDARD
from deconattn.errors import UserError
from deconattn.pages.palette import COLOURS

Table = Literal["1", "2", "3", "4", "figure3", "figure4"]
Kind = Literal["train", "evaluate", "skip", "contexts", "analyze"]
"""Kind of job: `skip` evaluates it without its variant layers, `contexts` at several context lengths."""

UNIFORM, EVEN = "uniform", "even"
NINE = ("even", "odd", "top", "middle", "bottom", "25%", "first", "last", "bilateral")
SIX = tuple(variant for variant in COLOURS if variant != STANDARD)
PLANNED_FLAGS = ("--size", "--variant", "--pattern", "--seed", "--tokens", "--data", "--save", "--resume")
"""Flags of a training that the plan gives each run."""
TRIAL_SIZE = "tiny"
"""Size for trials, not in the paper; its runs take the preset's number of tokens."""


@dataclass(frozen=True)
class Request:
    """Flags of a reproduction. None of it may change once a folder has been begun with it."""

    table: tuple[Table, ...] = ("1",)
    """Tables and figures of the paper; a run that several need is trained once."""
    size: tuple[str, ...] = ()
    """Sizes of model. By default the paper's: 500m; 1.7b for table 2; 70m, 160m and 500m for figure 4."""
    tokens: int | None = None
    """Tokens that each run trains on. By default the paper's: 15e9, and 45e9 for 1.7b."""
    variants: tuple[str, ...] = ()
    """Variants beside standard. By default the paper's: all six; rndemb and nonapproximate for figure 3."""
    patterns: tuple[str, ...] = ()
    """Patterns of the variants' layers. By default the paper's: uniform and even; even for table 2; uniform for
    table 4; the nine of table 11 for figure 3."""
    seed: int = 1234
    """Seed of all runs."""
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
    """Score only the first so many documents of a benchmark: for trying things, the scores are not comparable."""
    analysis: bool = True
    """Measure the attention indicators, too."""


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        pattern: pattern of the variant's layers; `uniform` for standard attention.
        tokens: None: as many as a training takes by default.
        key_value_heads: 0: as many as query heads.
    """

    size: str
    variant: str
    pattern: str
    seed: int
    tokens: int | None
    key_value_heads: int = 0

    @property
    def name(self) -> str:
        """Name of the run's folder, unique in a plan, all of whose runs have one seed."""
        heads = f"-kv{self.key_value_heads}" if self.key_value_heads else ""
        pattern = self.pattern.replace("%", "percent").replace(":", "to").replace("*", "x").replace(",", "-")
        return f"{self.size}-{self.variant}-{pattern}{heads}"

    @property
    def flags(self) -> list[str]:
        """Training flags that are specific to this run."""
        flags = ["--size", self.size, "--variant", self.variant, "--pattern", self.pattern, "--seed", str(self.seed)]
        if self.key_value_heads:
            flags += ["--num-key-value-heads", str(self.key_value_heads)]
        return flags if self.tokens is None else [*flags, "--tokens", str(self.tokens)]


@dataclass(frozen=True)
class Entry:
    """A row of a table: a run, and what of it is shown."""

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
        jobs: a run's training before what is measured of it.
    """

    tables: dict[Table, tuple[Entry, ...]] = field(default_factory=dict)
    jobs: tuple[PlannedJob, ...] = ()

    @property
    def runs(self) -> tuple[Run, ...]:
        return tuple(dict.fromkeys(job.run for job in self.jobs))


def make_plan(request: Request) -> ReproductionPlan:
    """The rows of the tables that are asked for, and the jobs that fill them.

    Raises:
        UserError: flags that do not go together, or a table without a row to compare.
    """
    check(request)
    tables = {table: tuple(_entries(request, table)) for table in dict.fromkeys(request.table)}
    entries = [entry for rows in tables.values() for entry in rows]
    jobs = []
    for run in dict.fromkeys(entry.run for entry in entries):
        measured = dict.fromkeys(entry.kind for entry in entries if entry.run == run)
        kinds: list[Kind] = ["train", *measured, *(["analyze"] if request.analysis else [])]  # type: ignore[list-item]
        jobs += [PlannedJob(run, kind) for kind in kinds]
    return ReproductionPlan(tables, tuple(jobs))


def check(request: Request) -> None:
    """Raises UserError for what is wrong with the flags alone."""
    if not request.table:
        raise UserError("--table names nothing: give 1, 2, 3, 4, figure3 or figure4")
    for flag, number in (("--tokens", request.tokens), ("--limit", request.limit)):
        if number is not None and number < 1:
            raise UserError(f"{flag} {number}: give 1 or more")
    for length in request.context_lengths:
        if length < 1:
            raise UserError(f"--context-lengths {length}: give numbers above zero")
    if request.key_value_heads < 1:
        raise UserError(f"--key-value-heads {request.key_value_heads}: give 1 or more")
    for word in more_flags(request):
        flag = word.split("=")[0].replace("_", "-")
        if flag in PLANNED_FLAGS:
            raise UserError(f"--train {flag}: the plan gives each run its {flag}; leave it out")
    for name, values in (("--variants", request.variants), ("--patterns", request.patterns), ("--size", request.size)):
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
    for size in request.size or _sizes(table):
        tokens = request.tokens or _tokens(size)
        yield Entry(Run(size, STANDARD, UNIFORM, request.seed, tokens, heads), shown)
        for variant in _variants(request, table):
            for pattern in request.patterns or _patterns(table):
                run = Run(size, variant, pattern, request.seed, tokens, heads)
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
