"""Final losses of the thirteen tiny runs: every variant uniform, and every one but `standard` in pattern 1:1.

    OMP_NUM_THREADS=1 python benchmarks/training/losses.py --data PACKED --out runs/losses

Each run goes through `launch.sh` into a folder of its own under --out; a finished one is skipped and one that was
interrupted goes on, so a call that was cut short can simply be made again. Beside the losses stands the corpus's
unigram entropy, what a model that knows frequencies alone would score. The table goes to OUT/losses.md and, with
machine and command, to benchmarks/LOG.md.
"""

import json
import math
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.machine import ROOT, command, describe, markdown_table, write_result
from deconattn.checkpoint.format import steps_in
from deconattn.cli import parse, run
from deconattn.config.command_line import parse_training_flags
from deconattn.config.pattern import STANDARD
from deconattn.data import TokenCorpus
from deconattn.errors import UserError
from deconattn.mixers import variant_names
from deconattn.train.metrics import METRICS

LOG = ROOT / "benchmarks" / "LOG.md"
HYBRID = "1:1"
READ_AT_ONCE = 2**20


@dataclass(frozen=True)
class Arguments:
    """Final validation losses of every variant, uniform and hybrid, at tiny size."""

    data: Path
    """A packed corpus with a validation split."""
    out: Path = Path("runs/losses")
    """Folder of the run folders, the table and the JSON."""
    size: str = "tiny"
    """Preset of dimensions."""
    steps: int = 300
    """Optimiser steps of each run."""
    global_batch_size: int = 2
    """Sequences a step."""
    micro_batch_size: int = 2
    """Sequences in a forward pass."""
    seq_len: int = 512
    """Tokens in a sequence."""
    lr: float = 3e-3
    """Peak learning rate."""
    warmup_steps: int = 30
    """Steps of linear warm-up."""
    adam_beta2: float = 0.99
    """The paper's 0.9999 is for runs a thousand times longer: its memory would outlast these."""
    eval_sequences: int = 64
    """Validation sequences."""
    seed: int = 1234
    """Initial weights and data order."""
    runs: tuple[str, ...] = ()
    """Runs to make, such as mlp or mlp-1:1; none is all."""
    log: Path = LOG
    """Markdown file to append the table to."""

    def training(self, variant: str, pattern: str, folder: Path) -> list[str]:
        """Flags of one run."""
        given = {
            "data": self.data,
            "save": folder,
            "variant": variant,
            "pattern": pattern,
            "size": self.size,
            "steps": self.steps,
            "save-every": self.steps,
            "eval-every": self.steps,
            "keep": 1,
            "seq-len": self.seq_len,
            "global-batch-size": self.global_batch_size,
            "micro-batch-size": self.micro_batch_size,
            "lr": self.lr,
            "warmup-steps": self.warmup_steps,
            "adam-beta2": self.adam_beta2,
            "eval-sequences": self.eval_sequences,
            "seed": self.seed,
        }
        return [word for name, value in given.items() for word in (f"--{name}", str(value))]


@dataclass(frozen=True)
class Result:
    """What a finished run's metrics say."""

    val_loss: float
    train_loss: float
    tokens_per_second: float
    skipped_steps: int


def planned() -> Iterator[tuple[str, str, str]]:
    """(name, variant, pattern) of every run, the baseline first."""
    for variant in sorted(variant_names(), key=lambda name: name != STANDARD):
        yield variant, variant, "uniform"
        if variant != STANDARD:
            yield f"{variant}-{HYBRID}", variant, HYBRID


def result_of(folder: Path, steps: int) -> Result | None:
    """A run's result, or None if it has not ended."""
    path = folder / METRICS
    if not path.is_file():
        return None
    rows: list[dict[str, Any]] = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
    validations = [row["val_loss"] for row in rows if "val_loss" in row and row["step"] == steps]
    trained = [row for row in rows if "loss" in row]
    if not validations or not (folder / "checkpoints" / f"step-{steps}").is_dir():
        return None
    rates = [row["tokens_per_second"] for row in trained if "tokens_per_second" in row]
    last = statistics.fmean(float(row["loss"]) for row in trained[-10:])
    return Result(float(validations[-1]), last, statistics.median(rates or [0.0]), trained[-1]["skipped_steps"])


def unigram_entropy(folder: Path, eval_tokens: int | None = None) -> float:
    """Nats a token of the validation split under the training split's frequencies, each count one more.

    Args:
        eval_tokens: only the first so many validation tokens, what the runs are validated on.
    """
    train, held_out = TokenCorpus(folder), TokenCorpus(folder, "val")
    counts = np.ones(train.manifest.vocab_size)
    for start in range(0, train.num_tokens, READ_AT_ONCE):
        tokens = train.read(start, min(READ_AT_ONCE, train.num_tokens - start))
        counts += np.bincount(tokens, minlength=len(counts))
    log_probabilities = np.log(counts / counts.sum())
    end = min(held_out.num_tokens, (eval_tokens or held_out.num_tokens) + 1)
    return float(-log_probabilities[held_out.read(1, end - 1)].mean())  # the first token is nobody's label


def train(arguments: Arguments, name: str, variant: str, pattern: str) -> Result:
    """Make a run unless it is there already; what it came to."""
    folder = arguments.out / name.replace(":", "to")
    wanted = parse_training_flags(arguments.training(variant, pattern, folder))
    found = result_of(folder, arguments.steps)
    if found is not None:
        before = json.loads((folder / "config.json").read_text(encoding="utf-8"))["flags"]["optimization"]
        for flag in ("global_batch_size", "lr", "seed", "adam_beta2", "warmup_steps"):
            if before[flag] != getattr(wanted.optimization, flag):
                raise UserError(f"{folder} was trained with {flag} {before[flag]}: give another --out, or remove it")
        print(f"{name}: finished before, {found.val_loss:.4f}")
        return found
    flags = arguments.training(variant, pattern, folder)
    if steps_in(folder):
        flags.append("--resume")
    elif folder.exists():  # cut short before its first checkpoint
        shutil.rmtree(folder)
    print(f"{name}: training", flush=True)
    code = subprocess.run([str(ROOT / "launch.sh"), *flags], check=False)
    found = result_of(folder, arguments.steps)
    if code.returncode or found is None:
        raise UserError(f"{name}: launch.sh ended with code {code.returncode}; its error is above")
    return found


def table(results: dict[str, Result], entropy: float) -> str:
    """Markdown: losses beside what frequencies alone give and beside `standard`."""
    rows = []
    standard = results.get(STANDARD)
    for name, result in results.items():
        behind = f"{result.val_loss - standard.val_loss:+.3f}" if standard else ""
        rows.append(
            [
                name,
                f"{result.val_loss:.3f}",
                f"{result.val_loss - entropy:+.3f}",
                behind,
                f"{result.train_loss:.3f}",
                str(result.skipped_steps),
                f"{result.tokens_per_second:,.0f}",
            ]
        )
    columns = ["run", "validation loss", "over unigram", "over standard", "training, last 10", "skipped", "tokens/s"]
    return markdown_table(columns, rows)


def main() -> None:
    """All runs, then the table."""
    arguments = parse(Arguments)
    plan = [entry for entry in planned() if not arguments.runs or entry[0] in arguments.runs]
    if not plan:
        raise UserError(f"--runs: choose from {', '.join(name for name, *_ in planned())}")
    entropy = unigram_entropy(arguments.data, arguments.eval_sequences * arguments.seq_len)
    print(f"unigram entropy of the validation tokens: {entropy:.4f} nats")
    arguments.out.mkdir(parents=True, exist_ok=True)
    results = {name: train(arguments, name, variant, pattern) for name, variant, pattern in plan}
    tokens = arguments.steps * arguments.global_batch_size * arguments.seq_len
    text = (
        f"`{command()}`\n\n{describe()}. {arguments.steps} steps, {tokens:,} tokens a run; unigram entropy "
        f"{entropy:.3f} nats, a uniform guess {math.log(TokenCorpus(arguments.data).manifest.vocab_size):.3f}.\n\n"
        + table(results, entropy)
    )
    print(text)
    (arguments.out / "losses.md").write_text(text, encoding="utf-8")
    found = {name: vars(result) for name, result in results.items()}
    write_result(arguments.out / "losses.json", {"unigram_entropy": entropy, "runs": found})
    with arguments.log.open("a", encoding="utf-8") as log:
        log.write(f"\n## {date.today().isoformat()}: final losses, {arguments.size}\n\n{text}")


if __name__ == "__main__":
    run(main)
