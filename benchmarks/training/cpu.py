"""Training throughput on this CPU: every variant through our engine, beside transformers' Qwen2.

    python benchmarks/training/cpu.py --size 70m --precision fp32
    python benchmarks/training/cpu.py --before FOLDER    # every variant also as the package of another checkout has it

Each contestant is a process of its own that trains a step when told to. One is active at a time, and they take
turns, so that whatever else the machine does falls on all of them alike; where memory does not hold all, in groups,
each with the peer. All see the same tokens, and `standard` and the peer start from the same weights, so their losses
say that they do the same work.
"""

import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.machine import RESULTS, ROOT, describe, write_result
from benchmarks.training.cpu_contestant import PEER, Spec
from deconattn.cli import parse, run
from deconattn.config.flags import model_config
from deconattn.errors import UserError
from deconattn.mixers import known_names, variant_names
from deconattn.model.flops import count_parameters

BEFORE = ", before"
BYTES_A_PARAMETER = 36
"""Weight, gradient, two moments, flattened copies of them, and room for activations; on the safe side."""
BYTES_A_LOGIT = 16
"""The peer holds all logits: as they come, in fp32, and the gradients of both."""
Samples = dict[str, list[dict[str, float]]]


@dataclass(frozen=True)
class Arguments:
    """Training throughput on this CPU, every variant beside transformers' Qwen2."""

    size: str = "70m"
    """Preset of dimensions."""
    seq_len: int = 512
    """Tokens in a sequence."""
    batch_size: int = 4
    """Sequences in a step; micro-batch and global batch alike."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 is DeepSpeed's for us and autocast for the peer."""
    vocab_size: int = 50304
    """Rows of the embedding."""
    layers: int = 0
    """Depth, for a quick run; 0 is the size's own."""
    repeats: int = 5
    """Measured steps a contestant, after one to warm up."""
    threads: int = 0
    """Threads of a contestant; 0 is as many as there are cores. On a machine with other work, 1 is often faster."""
    variants: tuple[str, ...] = ()
    """Variants to run; none is every registered one. The peer always runs."""
    before: Path | None = None
    """Checkout of an earlier commit: its variants take turns with these."""
    out: Path = RESULTS
    """Folder of the JSON."""

    def __post_init__(self) -> None:
        unknown = sorted(set(self.variants) - set(known_names()))
        if unknown:
            raise UserError(f"--variants {' '.join(unknown)}: choose from {', '.join(known_names())}")
        if self.repeats < 1:
            raise UserError(f"--repeats {self.repeats}: it must be at least 1")

    def spec(self, name: str) -> Spec:
        name = name.removesuffix(BEFORE)
        return Spec(name, self.size, self.seq_len, self.batch_size, self.precision, self.vocab_size, layers=self.layers)


class Contestant:
    """A contestant's process, started at its first turn.

    Args:
        name: the variant's or the peer's, with :data:`BEFORE` behind it where the package is that of `before`.
    """

    def __init__(self, name: str, arguments: Arguments, threads: int) -> None:
        self.name, self._spec, self._threads = name, arguments.spec(name), threads
        self._tree = arguments.before if name.endswith(BEFORE) else None
        self._process: subprocess.Popen[str] | None = None

    def step(self) -> dict[str, float]:
        """Train a step; a process that is new warms up first."""
        if self._process is None:
            self._start()
            self._ask()
        return self._ask()

    def end(self) -> None:
        """End the process and give its memory back."""
        if self._process is not None:
            self._process.communicate()
            self._answers.close()
            self._folder.cleanup()
            self._process = None

    def _start(self) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": str(self._threads), "TORCHDYNAMO_DISABLE": "1"}
        self._folder = tempfile.TemporaryDirectory()
        for name, tree in (("deconattn", self._tree or ROOT), ("benchmarks", ROOT)):
            Path(self._folder.name, name).symlink_to((tree / name).resolve())
        others = filter(None, [os.environ.get("PYTHONPATH")])
        environment["PYTHONPATH"] = os.pathsep.join([self._folder.name, *others])
        reading, writing = os.pipe()
        spec = json.dumps(dataclasses.asdict(self._spec))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.training.cpu_contestant", spec, str(writing)],
            cwd=self._folder.name,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=sys.stderr,
            pass_fds=[writing],
            text=True,
        )
        os.close(writing)
        self._answers = os.fdopen(reading)
        self._answer()

    def _ask(self) -> dict[str, float]:
        assert self._process is not None
        assert self._process.stdin is not None
        print("step", file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> Any:
        assert self._process is not None
        line = self._answers.readline()
        if not line:
            raise UserError(f"{self.name} ended with code {self._process.wait()}; its error is above")
        return json.loads(line)


def measure(contestants: list[Contestant], repeats: int) -> Samples:
    """Rounds in which each contestant trains a step."""
    samples: Samples = {contestant.name: [] for contestant in contestants}
    try:
        for number in range(repeats):
            for contestant in contestants:
                samples[contestant.name].append(contestant.step())
            print(f"round {number + 1} of {repeats}", file=sys.stderr)
    finally:
        for contestant in contestants:
            contestant.end()
    return samples


def groups(variants: Sequence[str], size: int) -> list[list[str]]:
    """The variants in groups that fit into memory together, the peer in each."""
    size = max(1, size - 1)
    return [[PEER, *variants[start : start + size]] for start in range(0, len(variants), size)]


def summarize(samples: Samples, tokens: int) -> dict[str, dict[str, float]]:
    """Tokens/s, and the speed over the peer's: the median of the rounds' ratios, which a drift does not move."""
    summary = {}
    peer = samples[PEER]
    for name, rows in samples.items():
        rates = [tokens / row["seconds"] for row in rows]
        summary[name] = {
            "tokens_per_second": statistics.median(rates),
            "slowest": min(rates),
            "fastest": max(rates),
            "ratio": statistics.median(p["seconds"] / row["seconds"] for p, row in zip(peer, rows, strict=True)),
            "cpu_ratio": statistics.median(
                p["cpu_seconds"] / row["cpu_seconds"] for p, row in zip(peer, rows, strict=True)
            ),
            "peak_gib": max(row["peak_gib"] for row in rows),
            "last_loss": rows[-1]["loss"],
        }
    return summary


def main() -> None:
    """Measure, print, write."""
    arguments = parse(Arguments)
    threads = arguments.threads or len(os.sched_getaffinity(0))
    variants = arguments.variants or variant_names()
    flags = arguments.spec(PEER).flags()
    parameters = count_parameters(model_config(flags.model, arguments.vocab_size, arguments.seq_len)).total
    logits = arguments.batch_size * arguments.seq_len * arguments.vocab_size
    needed = BYTES_A_PARAMETER * parameters + BYTES_A_LOGIT * logits + 2**29
    at_once = psutil.virtual_memory().available // needed
    samples: list[Samples] = []
    summary: dict[str, dict[str, float]] = {}
    sides = ("",) if arguments.before is None else ("", BEFORE)
    names = [name + side for name in variants for side in sides]
    for some in groups(names, at_once):
        samples.append(measure([Contestant(name, arguments, threads) for name in some], arguments.repeats))
        # A ratio is to the peer of the same group; the peer's own row is that of the first.
        summary = summarize(samples[-1], arguments.batch_size * arguments.seq_len) | summary
    summary = {name: summary[name] for name in (PEER, *names)}

    title = f"{arguments.size}, {arguments.precision}, {arguments.batch_size} x {arguments.seq_len} tokens a step"
    table = Table(title=f"{title}, {threads} threads", caption=describe())
    columns = ("contestant", "tokens/s", "min-max", "ratio", "CPU-time ratio", "peak GiB", "loss")
    for column in columns:
        table.add_column(column, justify="left" if column == "contestant" else "right", no_wrap=True)
    for name, row in summary.items():
        span = f"{row['slowest']:,.0f}-{row['fastest']:,.0f}"
        table.add_row(
            name,
            f"{row['tokens_per_second']:,.0f}",
            span,
            f"{row['ratio']:.3f}",
            f"{row['cpu_ratio']:.3f}",
            f"{row['peak_gib']:.2f}",
            f"{row['last_loss']:.4f}",
        )
    Console(width=max(100, Console().width)).print(table)
    options = {**dataclasses.asdict(arguments), "threads": threads, "variants": list(variants)}
    options |= {"before": arguments.before is not None}
    options.pop("out")
    path = arguments.out / f"train_cpu-{arguments.size}-{arguments.precision}.json"
    write_result(path, {"options": options, "peer": PEER, "summary": summary, "samples": samples})
    print(f"written: {path}")


if __name__ == "__main__":
    run(main)
