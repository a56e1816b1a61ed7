"""Text generation: time a token and bytes of cache of every variant, beside transformers' Qwen2 with its KV cache.

    python benchmarks/decoding/decode.py --size 70m --precision fp32

What is timed is what `generate` calls for each token: the model on one new token a row, from a cache that holds so
many. Contestants take turns of a few steps in one process, so that whatever else the machine does falls on all alike,
and a ratio is the median over the rounds; where memory does not hold all, in groups, each with the peer. Two turns
pass before time is taken: a cache that grows in blocks has taken its next one then, which it does once in 256 steps.
Besides, whole calls of `generate`, the same with static caches where asked for, and a step of a model so small that
nothing but the host's work is left.
"""

import dataclasses
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Literal, TypeVar

import psutil
import torch
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.decoding.contestants import (
    QWEN2,
    Call,
    Contestant,
    Player,
    Precision,
    Setting,
    Steps,
    freed,
    generation,
    groups,
)
from benchmarks.decoding.report import Case, markdown, progress, summarize, tables
from benchmarks.kernels.clock import WARM_UPS, described, race
from benchmarks.machine import RESULTS, describe, write_result
from benchmarks.training.summary import device_slug
from benchmarks.training.worker import synchronize
from deconattn.cli import parse, run
from deconattn.config.presets import size_defaults
from deconattn.errors import UserError
from deconattn.mixers import known_names, variant_names

Made = TypeVar("Made")
SMALLEST = "tiny"
"""Size whose step is the host's work."""
GENERATIONS = 3
"""Timed calls of `generate` a contestant."""
COMPILE_SECONDS = 25
"""That a contestant's step takes to compile, about."""
MEMORY_USED = 0.7
"""Part of the free memory that contestants may take: the rest is for what they compute."""


@dataclass(frozen=True)
class Arguments:
    """Time a token and bytes of cache of every variant, beside transformers' Qwen2."""

    device: Literal["cpu", "cuda"] = "cpu"
    """Where everything runs."""
    size: str = "70m"
    """Preset of dimensions."""
    variants: tuple[str, ...] = ()
    """Variants; none is every registered one. The peer always runs."""
    patterns: tuple[str, ...] = ("uniform", "1:1")
    """Patterns that each variant is measured in."""
    batches: tuple[int, ...] = (1, 8)
    """Sequences that grow at once."""
    lengths: tuple[int, ...] = (512, 2048, 8192, 16384)
    """Tokens that the cache holds in each of them."""
    precision: tuple[Precision, ...] = ("fp32",)
    """Of weights and caches."""
    static: tuple[str, ...] = ()
    """Variants that are measured with static caches and torch.compile too, beside the peer with its own."""
    steps: int = 32
    """Timed steps a contestant and case."""
    steps_a_turn: int = 4
    """Steps before the next contestant has its turn: one time is taken for them together."""
    prompt: int = 512
    """Tokens of the prompt for `generate`."""
    new_tokens: int = 64
    """Tokens that `generate` adds; 0 leaves it out."""
    vocab_size: int = 50304
    """Rows of the embedding."""
    layers: int = 0
    """Depth, for a quick run; 0 is the size's own."""
    threads: int = 0
    """Threads on a CPU; 0 is as many as PyTorch takes by itself."""
    seconds: float = 36000
    """After so long no further case begins; what matters most comes first."""
    case_seconds: float = 60
    """After so long no further round of a case begins, but for the first three."""
    out: Path = RESULTS
    """Folder of decode-SIZE-PRECISION-DEVICE.json and .md."""

    def __post_init__(self) -> None:
        for flag in ("variants", "static"):
            if unknown := sorted(set(getattr(self, flag)) - set(known_names())):
                raise UserError(f"--{flag} {' '.join(unknown)}: choose from {', '.join(known_names())}")
        if size_defaults(self.size).model.qk_norm:
            raise UserError(f"--size {self.size} has query/key norms, which Qwen2 has not: choose another size")
        for flag in ("patterns", "batches", "lengths", "precision"):
            if not getattr(self, flag):
                raise UserError(f"--{flag}: give one or more")
        for flag in ("batches", "lengths", "steps", "steps_a_turn", "prompt"):
            given = getattr(self, flag)
            if (min(given) if isinstance(given, tuple) else given) < 1:
                raise UserError(f"--{flag.replace('_', '-')}: each must be at least 1")
        if self.steps % self.steps_a_turn:
            raise UserError(f"--steps {self.steps}: it must be a multiple of --steps-a-turn {self.steps_a_turn}")
        for pattern in self.patterns:
            self.setting("fp32").config(Contestant("standard", pattern))  # which knows the patterns
        if self.device == "cuda" and not torch.cuda.is_available():
            raise UserError("there is no GPU here; give --device cpu")

    @property
    def room(self) -> int:
        """Tokens that a cache of a race grows by at most."""
        return self.steps + WARM_UPS * self.steps_a_turn

    def contestants(self) -> list[Contestant]:
        """Ours: `standard` first, and only once."""
        variants = sorted(self.variants or variant_names(), key=lambda name: name != "standard")
        of_all = [Contestant(variant, pattern) for pattern in self.patterns for variant in variants]
        return [one for one in of_all if one.variant != "standard" or one.pattern == self.patterns[0]]

    def setting(self, precision: Precision) -> Setting:
        longest = max(max(self.lengths) + self.room, self.prompt + self.new_tokens)
        return Setting(self.size, self.layers, self.vocab_size, precision, self.device, longest)

    def smallest(self, precision: Precision) -> Setting:
        """Whose step takes hardly longer than to ask for it."""
        return Setting(SMALLEST, 0, 512, precision, self.device, 1 + self.room)


class Measurement:
    """All cases of one precision, written whenever one has been measured.

    Attributes:
        failed: whether a contestant failed in any of them.
    """

    def __init__(self, arguments: Arguments, precision: Precision, end: float) -> None:
        self.failed = False
        self._arguments, self._precision, self._end = arguments, precision, end
        self._setting = arguments.setting(precision)
        self._cases: list[Case] = []

    def run(self) -> None:
        """Measure as much as there is time for, and print all tables."""
        given, setting = self._arguments, self._setting
        ours, rows, lengths = given.contestants(), max(given.batches), sorted(given.lengths)
        for group in groups(ours, setting, rows + 1, _memory(setting.device)):  # one more: that they are copies of
            self._measure("step", group, setting, lengths, given.batches)
        self._measure("overhead", [QWEN2, *ours], given.smallest(self._precision), [1], [1])
        static = dataclasses.replace(setting, static=True)
        for group in groups([Contestant(name) for name in given.static], static, rows, _memory(setting.device)):
            self._measure("static", group, static, lengths, given.batches)
        print(f"\n{given.size}, {self._precision}, on {describe()}")
        for title, columns, table in tables(self._cases, QWEN2.name):
            _print(title, columns, table)

    def _measure(
        self, kind: str, group: Sequence[Contestant], setting: Setting, lengths: Sequence[int], batches: Sequence[int]
    ) -> None:
        """Steps at every length and batch, then whole generations but in `overhead`."""
        freed()
        players, failures = _tried({one.name: partial(Player, one, setting) for one in group})
        given, reserve = self._arguments, COMPILE_SECONDS * len(players) if setting.static else 0
        for length, batch in product(lengths, batches):
            if self._has_time(f"{kind}, {batch} x {length}", reserve):
                if setting.static:
                    torch.compiler.reset()  # what was compiled for the last case's shapes
                self._add(_steps(given, kind, players, batch, length), failures)
        if given.new_tokens and kind != "overhead" and self._has_time("generate", reserve):
            if setting.static:
                torch.compiler.reset()
            self._add(_generations(given, "generate static" if setting.static else "generate", players), failures)

    def _has_time(self, what: str, reserve: float) -> bool:
        if time.monotonic() + reserve < self._end:
            return True
        print(f"{what}: no time left", flush=True)
        return False

    def _add(self, case: Case, failures: dict[str, str]) -> None:
        """A case of one group; the peer's figures are those of the first."""
        case["contestants"] |= {name: {"failure": text} for name, text in failures.items()}
        print(progress(case), flush=True)
        self.failed |= any("failure" in row for row in case["contestants"].values())
        of = ("kind", "batch", "length")
        for known in self._cases:
            if all(known[name] == case[name] for name in of):
                known["samples"] += case["samples"]
                known["contestants"] = known["contestants"] | case["contestants"] | known["contestants"]
                break
        else:
            self._cases.append(case)
        self._write()

    def _write(self) -> None:
        given = self._arguments
        name = f"decode-{given.size}-{self._precision}-{device_slug() if given.device == 'cuda' else 'cpu'}"
        options = {field: value for field, value in vars(given).items() if field != "out"}
        options |= {"precision": self._precision, "threads": torch.get_num_threads()}
        write_result(given.out / f"{name}.json", {"options": options, "peer": QWEN2.name, "cases": self._cases})
        (given.out / f"{name}.md").write_text(markdown(self._cases, QWEN2.name), encoding="utf-8")


def _steps(given: Arguments, kind: str, players: dict[str, Player], batch: int, length: int) -> Case:
    """A race of steps; the caches are gone when it is over."""
    calls, failures = _tried(
        {
            name: partial(Steps, player, batch, length, given.room, given.steps_a_turn)
            for name, player in players.items()
        }
    )
    case = _raced(given, kind, batch, length, calls, given.steps // given.steps_a_turn, given.steps_a_turn)
    for name, row in case["contestants"].items():
        row |= {"cache_bytes": calls[name].nbytes, "fixed_bytes": calls[name].fixed_nbytes}
    case["contestants"] |= {name: {"failure": text} for name, text in failures.items()}
    return case


def _generations(given: Arguments, kind: str, players: dict[str, Player]) -> Case:
    """A race of whole calls of `generate`."""
    calls = {name: generation(player, given.prompt, given.new_tokens) for name, player in players.items()}
    return _raced(given, kind, 1, given.prompt, calls, GENERATIONS, given.new_tokens)


def _raced(
    given: Arguments, kind: str, batch: int, length: int, calls: Mapping[str, Call], rounds: int, steps: int
) -> Case:
    """Calls of so many steps each, in turn."""
    with torch.no_grad():
        found = race(calls, partial(_seconds, given.device), rounds, given.case_seconds)
    samples = {name: [taken / steps for taken in seconds] for name, seconds in found.samples.items()}
    rows = summarize(samples, batch, QWEN2.name) | {name: {"failure": text} for name, text in found.failures.items()}
    return {"kind": kind, "batch": batch, "length": length, "samples": [samples], "contestants": rows}


def _tried(makers: Mapping[str, Callable[[], Made]]) -> tuple[dict[str, Made], dict[str, str]]:
    """What was made, by name, and why the others were not."""
    made, failures = {}, {}
    with torch.no_grad():
        for name, make in makers.items():
            try:
                made[name] = make()
            except Exception as error:  # the others go on
                failures[name] = described(error)
    return made, failures


def _seconds(device: str, call: Call) -> float:
    """Of a call, until the device has done all of it."""
    synchronize(torch.device(device))
    start = time.perf_counter()
    call()
    synchronize(torch.device(device))
    return time.perf_counter() - start


def _memory(device: str) -> int:
    """Bytes that contestants may take."""
    free = torch.cuda.mem_get_info()[0] if device == "cuda" else psutil.virtual_memory().available
    return int(MEMORY_USED * free)


def _print(title: str, columns: list[str], rows: list[list[str]]) -> None:
    table = Table()
    for column in columns:
        table.add_column(column, justify="left" if column == "contestant" else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    Console(width=max(200, Console().width)).print(f"\n{title}", table, highlight=False)


def main() -> int:
    """Every precision; 1 if a contestant failed."""
    arguments = parse(Arguments)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    end = time.monotonic() + arguments.seconds
    failed = False
    for precision in arguments.precision:
        measurement = Measurement(arguments, precision, end)
        measurement.run()
        failed |= measurement.failed
    return int(failed)


if __name__ == "__main__":
    run(main)
