"""Tokens a second out of our loader, beside Megatron's GPTDataset, mosaicml-streaming and litdata.

    python benchmarks/loading/load.py --data PACKED --megatron ../Megatron-LM --python ../peers/bin/python

Everybody reads the same documents from a local disk in random order, int64 inputs and labels. Each measurement is a
process of its own; they take turns round by round, so that other work on the machine falls on all alike. `direct` is
samples by their numbers in one process; `0` what a user gets without loader workers (ours: a thread), `N` with N.
"""

import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.loading.contestants import CONTESTANTS, DIRECT, OURS, Spec
from benchmarks.machine import RESULTS, ROOT, describe, markdown_table, write_result
from deconattn.cli import parse, run
from deconattn.data import TokenCorpus
from deconattn.errors import UserError

Rows = dict[str, dict[str, Any]]
"""By `contestant, workers`."""


@dataclass(frozen=True)
class Arguments:
    """Tokens a second out of our loader, beside Megatron's, mosaicml-streaming's and litdata's."""

    data: Path
    """A packed corpus."""
    megatron: Path | None = None
    """A checkout of Megatron-LM, its megatron/core/datasets/helpers_cpp compiled."""
    python: Path = Path(sys.executable)
    """The interpreter that everybody runs in: one that also has mosaicml-streaming and litdata."""
    seq_len: int = 2048
    """Tokens in a sequence."""
    batch_size: int = 8
    """Sequences in a batch."""
    workers: tuple[int, ...] = (0, 2)
    """Numbers of worker processes to try beside direct access."""
    seconds: float = 10.0
    """Of a measurement; an epoch ends it earlier."""
    rounds: int = 3
    """Measurements of each."""
    copies: Path | None = None
    """Folder of the contestants' own copies of the corpus, kept; by default a temporary one."""
    train_tokens_per_second: float = 0.0
    """What this machine can train; 0 is the fastest of the results of training/cpu.py."""
    out: Path = RESULTS
    """Folder of load.json and load.md."""

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.batch_size < 1 or self.seq_len < 1 or not self.seconds > 0:
            raise UserError("--rounds, --batch-size, --seq-len and --seconds must be above zero")
        if any(number < 0 for number in self.workers):
            raise UserError(f"--workers {self.workers}: none may be below zero")


def measure(arguments: Arguments, copies: Path) -> dict[str, list[dict[str, Any]]]:
    """Rounds in which each contestant reads in each way; one that is absent or fails is asked once."""
    samples: dict[str, list[dict[str, Any]]] = {}
    for number in range(arguments.rounds):
        for workers in (DIRECT, *arguments.workers):
            for name in CONTESTANTS:
                rows = samples.setdefault(_key(name, workers), [])
                if _absent(rows):
                    continue
                rows.append(_process(arguments, _spec(arguments, copies, name, workers)))
                if reason := _absent(rows):
                    print(f"{_key(name, workers)}: {reason}", file=sys.stderr)
        print(f"round {number + 1} of {arguments.rounds}", file=sys.stderr)
    return samples


def _spec(arguments: Arguments, copies: Path, name: str, workers: int) -> Spec:
    copy = copies / f"{name.split()[0]}-{arguments.seq_len}"
    megatron = str(arguments.megatron.resolve()) if arguments.megatron else ""
    return Spec(
        name, str(arguments.data), str(copy), workers, arguments.seq_len, arguments.batch_size, megatron=megatron
    )


def _absent(rows: list[dict[str, Any]]) -> str:
    return next((row["absent"] for row in rows if "absent" in row), "")


def _key(name: str, workers: int) -> str:
    return f"{name}, {'direct' if workers == DIRECT else workers}"


def _process(arguments: Arguments, spec: Spec) -> dict[str, Any]:
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    reading, writing = os.pipe()
    with os.fdopen(reading) as answers:
        try:
            process = subprocess.Popen(
                [
                    *(str(arguments.python), "-m", "benchmarks.loading.worker"),
                    *(json.dumps(dataclasses.asdict(spec)), str(arguments.seconds), str(writing)),
                ],
                env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=[writing],
            )
        except OSError as error:
            raise UserError(f"--python {arguments.python}: {error.strerror}; name an interpreter") from None
        finally:
            os.close(writing)
        output, _ = process.communicate()
        line = answers.readline()
    if line:
        found: dict[str, Any] = json.loads(line)
        return found
    if spec.name == OURS:
        raise UserError(f"our own loader failed: {output.decode(errors='replace').strip().splitlines()[-1:]}")
    last = output.decode(errors="replace").strip().splitlines()[-1:] or [f"exit code {process.returncode}"]
    return {"absent": f"it failed: {last[0]}"}


def summarize(samples: dict[str, list[dict[str, Any]]], train: float) -> Rows:
    """Medians over rounds; `ratio` is our rate over theirs, the median of the rounds' ratios."""
    rows: Rows = {}
    for key, found in samples.items():
        if _absent(found):
            continue
        name, way = key.rsplit(", ", 1)
        mine = samples[f"{OURS}, {way}"]
        rows[key] = {
            "contestant": name,
            "workers": way,
            "tokens_per_second": statistics.median(row["tokens_per_second"] for row in found),
            "ratio": statistics.median(
                our["tokens_per_second"] / row["tokens_per_second"] for our, row in zip(mine, found, strict=True)
            ),
            "opening_seconds": statistics.median(row["opening_seconds"] for row in found),
            "gib": max(row["peak_gib"] for row in found),
        }
        if way == "direct":  # with workers, this process's CPU time says little
            rows[key]["tokens_per_cpu_second"] = statistics.median(
                row["tokens"] / max(row["cpu_seconds"], 1e-9) for row in found
            )
        if train:
            rows[key]["times_training"] = rows[key]["tokens_per_second"] / train
    return rows


def trained_tokens_per_second(folder: Path) -> float:
    """The fastest training among the results of training/cpu.py; 0 if there are none."""
    rates = [0.0]
    for path in folder.glob("train_cpu-*.json"):
        summary = json.loads(path.read_text(encoding="utf-8"))["summary"]
        rates += [row["tokens_per_second"] for row in summary.values()]
    return max(rates)


def main() -> None:
    """Measure, print, write."""
    arguments = parse(Arguments)
    tokens = TokenCorpus(arguments.data).num_tokens
    train = arguments.train_tokens_per_second or trained_tokens_per_second(RESULTS)
    with tempfile.TemporaryDirectory() as temporary:
        samples = measure(arguments, (arguments.copies or Path(temporary)).resolve())
    rows = summarize(samples, train)
    absent = {key: reason for key, found in samples.items() if (reason := _absent(found))}

    columns = ["contestant", "workers", "tokens/s", "tokens/CPU s", "ours is faster", "times training", "opening, s"]
    cells = [_cells(row) for row in rows.values()]
    title = f"{tokens:,} tokens, {arguments.batch_size} x {arguments.seq_len} a batch, random access"
    table = Table(title=title, caption=describe())
    for column in columns:
        table.add_column(column, justify="left" if column == "contestant" else "right", no_wrap=True)
    for row in cells:
        table.add_row(*row)
    Console(width=max(110, Console().width)).print(table)
    trained = f"Training: {train:,.0f} tokens/s on this machine." if train else "Training: not measured here."
    missing = "".join(f"\n\nAbsent: {name} ({reason})." for name, reason in absent.items())
    print(trained + missing)
    options = {name: str(value) for name, value in dataclasses.asdict(arguments).items() if name != "out"}
    result = {"options": options, "corpus_tokens": tokens, "train_tokens_per_second": train, "absent": absent}
    write_result(arguments.out / "load.json", {**result, "summary": rows, "samples": samples})
    text = f"{title}\n\n{markdown_table(columns, cells)}\n{trained}{missing}\n"
    (arguments.out / "load.md").write_text(text, encoding="utf-8")
    print(f"written: {arguments.out / 'load.json'}, load.md")


def _cells(row: dict[str, Any]) -> list[str]:
    per_cpu = row.get("tokens_per_cpu_second")
    times = row.get("times_training")
    return [
        row["contestant"],
        row["workers"],
        f"{row['tokens_per_second']:,.0f}",
        f"{per_cpu:,.0f}" if per_cpu else "",
        "" if row["contestant"] == OURS else f"{row['ratio']:.1f} x",
        f"{times:,.0f} x" if times else "",
        f"{row['opening_seconds']:.2f}",
    ]


if __name__ == "__main__":
    run(main)
