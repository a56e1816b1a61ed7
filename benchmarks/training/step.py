"""Training throughput on one GPU: every variant through our engine beside transformers and torchtitan.

    python benchmarks/training/step.py --seconds 240 --torchtitan ../torchtitan --out benchmarks/results

Each contestant has the device to itself for a few seconds, in a process of its own: whole optimiser steps on random
tokens, timed between synchronisations. They take turns in the order of what matters most, as many as --seconds
allow. The reference, transformers' Qwen2 in mixed precision, comes first and again last for each size, so
that a drift of the machine shows; a ratio is to the median of both. `standard` and the reference start from the same
weights: their losses say that they do the same work. Without a GPU it runs on the CPU, as a rehearsal.
"""

import dataclasses
import json
import signal
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.machine import RESULTS, write_result
from benchmarks.training.contestants import Contestant, Workload
from benchmarks.training.process import TrainingProcess
from benchmarks.training.summary import device_slug, markdown, summarize
from deconattn.cli import parse, run
from deconattn.config.presets import SIZES
from deconattn.errors import UserError
from deconattn.mixers import known_names, variant_names
from deconattn.ops import backend

REFERENCE = Contestant("transformers")
FIRST = ("fixedseq", "nonapproximate", "approximate")
"""Variants measured before the others, eagerly too: one of each mixing operation."""
NO_TIME = "no time left"
Runs = dict[str, list[dict[str, Any]]]
"""By contestant's name, what `worker.measure` returned, or a `failure`, a turn each."""


@dataclass(frozen=True)
class Arguments:
    """Training throughput of every variant beside transformers and torchtitan."""

    sizes: tuple[str, ...] = ("500m", "160m", "70m")
    """Presets of dimensions, one after the other."""
    variants: tuple[str, ...] = ()
    """Variants; none is every registered one. The peers always run."""
    pattern: str = "1:1"
    """Besides uniform, the pattern of the variants."""
    micro_batch_sizes: tuple[int, ...] = (8, 4, 2, 1)
    """Sequences in an optimiser step: the first of these that a contestant has the memory for."""
    seq_len: int = 2048
    """Tokens in a sequence."""
    vocab_size: int = 50304
    """Rows of the embedding."""
    layers: int = 0
    """Depth, for a quick run; 0 is the size's own."""
    warmup_steps: int = 4
    """Steps before time is taken; the first one compiles."""
    samples: int = 5
    """Times taken of a contestant at a turn."""
    steps_a_sample: int = 4
    """Optimiser steps in each of them."""
    eager: bool = True
    """Measure what matters most without torch.compile too."""
    torchtitan: Path | None = None
    """A checkout of torchtitan v0.2.2, to measure its llama3."""
    seconds: float = 3600.0
    """It ends within this time, whoever has not had a turn."""
    turn_seconds: float = 100.0
    """A contestant that takes longer, compiling included, is stopped and has failed."""
    out: Path = RESULTS
    """Folder of train_step-DEVICE.json and train_step-DEVICE.md."""

    def __post_init__(self) -> None:
        for flag, given, known in (("sizes", self.sizes, SIZES), ("variants", self.variants, known_names())):
            if unknown := sorted(set(given) - set(known)):
                raise UserError(f"--{flag} {' '.join(unknown)}: choose from {', '.join(known)}")
        for name in ("warmup_steps", "samples", "steps_a_sample"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name.replace('_', '-')} {getattr(self, name)}: it must be at least 1")
        if not self.micro_batch_sizes or min(self.micro_batch_sizes) < 1:
            raise UserError("--micro-batch-sizes: give one or more, each at least 1")
        if self.torchtitan is not None and not self.torchtitan.is_dir():
            raise UserError(f"--torchtitan {self.torchtitan}: no such folder")

    def workload(self, size: str, micro_batch_size: int) -> Workload:
        return Workload(
            size, self.seq_len, micro_batch_size, self.vocab_size, self.layers, self.warmup_steps, self.samples,
            self.steps_a_sample, str(self.torchtitan.resolve()) if self.torchtitan else "",
        )  # fmt: skip

    def contestants(self) -> list[Contestant]:
        """Who runs between the two turns of the reference, what matters most first."""
        variants = self.variants or tuple(variant_names())
        patterns = (self.pattern, "uniform")
        first = [name for name in FIRST if name in variants]
        others = [name for name in variants if name not in (*FIRST, "standard")]
        found = [Contestant()] if "standard" in variants else []
        found += [Contestant("torchtitan")] if self.torchtitan else []
        found += [Contestant("deconattn", name, pattern) for pattern in patterns for name in first]
        found += [dataclasses.replace(REFERENCE, whole_model=True), dataclasses.replace(REFERENCE, bf16_weights=True)]
        if self.eager:
            found += [dataclasses.replace(contestant, compile=False) for contestant in (*found[:1], REFERENCE)]
        found += [Contestant("deconattn", name, pattern) for pattern in patterns for name in others]
        if self.eager:
            found += [Contestant("deconattn", name, self.pattern, compile=False) for name in first]
        found += [Contestant("deconattn", name, self.pattern, backend="torch") for name in first]
        return found


class Turns:
    """Gives contestants their turns within the time: while one trains, the next one's process imports."""

    def __init__(self, arguments: Arguments) -> None:
        self._arguments = arguments
        self._end = time.monotonic() + arguments.seconds
        self._ahead: tuple[tuple[Contestant, Workload], TrainingProcess] | None = None
        self._durations: list[float] = []

    def left(self) -> float:
        """Seconds."""
        return self._end - time.monotonic()

    def time_for_another(self, reserve: float) -> bool:
        """Whether a turn as long as most would end in time and leave `reserve` seconds."""
        return self.left() - reserve > (statistics.median(self._durations) if self._durations else 0.0)

    def take(self, contestant: Contestant, size: str, reserve: float, then: Contestant | None) -> dict[str, Any]:
        """A turn at the largest micro-batch that fits, over before `reserve` seconds are left."""
        start = time.monotonic()
        result: dict[str, Any] = {}
        sizes = self._arguments.micro_batch_sizes
        for number, micro_batch_size in enumerate(sizes):
            process = self._process(contestant, self._arguments.workload(size, micro_batch_size))
            if then is not None and number == 0:
                self._start_ahead(then, self._arguments.workload(size, sizes[0]))
            limit = min(self._arguments.turn_seconds, self.left() - reserve)
            result = process.result(limit) | {"micro_batch_size": micro_batch_size}
            if not result.get("out_of_memory"):
                break
        if result.get("stopped") and limit < self._arguments.turn_seconds:
            result["failure"] = NO_TIME
        result["turn_seconds"] = time.monotonic() - start
        if "failure" not in result:
            self._durations.append(without_compiling(result))
        return result

    def close(self) -> None:
        """End a process that waits for a turn that it will not have."""
        if self._ahead:
            self._ahead[1].end()
            self._ahead = None

    def _process(self, contestant: Contestant, workload: Workload) -> TrainingProcess:
        """The one that was started ahead, if it is this one."""
        if self._ahead and self._ahead[0] == (contestant, workload):
            process = self._ahead[1]
            self._ahead = None
            return process
        return self._started(contestant, workload)

    def _start_ahead(self, contestant: Contestant, workload: Workload) -> None:
        self.close()
        self._ahead = (contestant, workload), self._started(contestant, workload)

    @staticmethod
    def _started(contestant: Contestant, workload: Workload) -> TrainingProcess:
        specification = [json.dumps(dataclasses.asdict(item)) for item in (contestant, workload)]
        arguments = ["-m", "benchmarks.training.worker", *specification]
        variables = {backend.VARIABLE: contestant.backend} if contestant.backend else {}
        return TrainingProcess(arguments, contestant.compile, variables)


def without_compiling(result: dict[str, Any]) -> float:
    """Seconds of a turn without its warm-up, most of which is compilation."""
    seconds: float = result["turn_seconds"] - result.get("warmup_seconds", 0.0)
    return seconds


def turns_of_a_size(arguments: Arguments, size: str, turns: Turns) -> Iterator[tuple[Contestant, dict[str, Any]]]:
    """Every turn there is time for: the reference, the contestants, the reference."""
    contestants = arguments.contestants()
    opening = turns.take(REFERENCE, size, 0.0, then=contestants[0])
    yield REFERENCE, opening
    # For the closing turn, which finds compiled what this one did.
    reserve = 0.0 if "failure" in opening else 1.5 * without_compiling(opening)
    for number, contestant in enumerate(contestants):
        if turns.time_for_another(reserve):
            then = contestants[number + 1] if number + 1 < len(contestants) else REFERENCE
            yield contestant, turns.take(contestant, size, reserve, then)
        else:
            yield contestant, {"failure": NO_TIME}
    if turns.left() > 0 and "failure" not in opening:
        yield REFERENCE, turns.take(REFERENCE, size, 0.0, then=None)


def main() -> int:
    """Every size; written after each turn, so that nothing is lost. 1 if a contestant failed, but for want of time."""
    arguments = parse(Arguments)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))  # so that what was started is ended too
    name = f"train_step-{device_slug()}"
    options = {field: value for field, value in vars(arguments).items() if field not in ("out", "torchtitan")}
    turns = Turns(arguments)
    sizes: dict[str, Runs] = {}
    summary: dict[str, Any] = {}
    failed = False
    try:
        for size in arguments.sizes:
            if not turns.time_for_another(reserve=0.0):
                print(f"{size}: no time left", flush=True)
                continue
            runs = sizes.setdefault(size, {})
            for contestant, result in turns_of_a_size(arguments, size, turns):
                runs.setdefault(contestant.name, []).append(dataclasses.asdict(contestant) | result)
                failure = result.get("failure")
                failed |= failure not in (None, NO_TIME)
                took = f"{result.get('turn_seconds', 0.0):.0f} s"
                print(f"{size}, {contestant.name}, {took}: {failure or 'done'}", flush=True)
                summary[size] = summarize(runs, REFERENCE.name, arguments.workload(size, 1))
                found = {"options": options, "reference": REFERENCE.name, "summary": summary, "runs": sizes}
                write_result(arguments.out / f"{name}.json", found)
                (arguments.out / f"{name}.md").write_text(markdown(summary, REFERENCE.name), encoding="utf-8")
    finally:
        turns.close()
    print(markdown(summary, REFERENCE.name))
    return int(failed)


if __name__ == "__main__":
    run(main)
