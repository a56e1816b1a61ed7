"""A small model from short sequences to long ones with YaRN: perplexity by position before, after YaRN, after training.

    OMP_NUM_THREADS=1 python benchmarks/long_sequences.py --data PACKED --out runs/long

trains a model on sequences of --short tokens, exports it, and goes on from the export in sequences of --long tokens,
with YaRN and, for comparison, without any scaling. All are scored by position on the validation split at --long tokens:
as the model was, with YaRN alone, and after training. Finished runs are skipped, interrupted ones go on. The numbers go
to `results/long_sequences.json`, the table to `results/long_sequences.md`, the picture to
`docs/images/long_sequences.svg` and `.png`.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.machine import RESULTS, ROOT, command, describe, write_result
from benchmarks.training.losses import result_of
from deconattn import durable
from deconattn.checkpoint.format import steps_in
from deconattn.cli import parse, run
from deconattn.errors import UserError
from deconattn.evaluation.position import position_cells
from deconattn.shown import markdown_table

TASK, NAME = "position", "long_sequences"


@dataclass(frozen=True)
class Arguments:
    """What YaRN and a little training make of a small model at sequences eight times as long."""

    data: Path
    """A packed corpus of long documents with a validation split."""
    out: Path = Path("runs/long")
    """Folder of the run folders."""
    size: str = "tiny"
    """Preset of dimensions."""
    variant: str = "standard"
    """Variant of the layers; fixed streams have no positions beyond their own to compare with."""
    short: int = 256
    """Tokens of a sequence at first."""
    long: int = 2048
    """Tokens of a sequence then."""
    steps: int = 700
    """Steps of the training on short sequences."""
    more_steps: int = 40
    """Steps of the training on long ones."""
    tokens_a_step: int = 2048
    """Tokens of a step of the first; the second has twice as many."""
    lr: float = 3e-3
    """Peak learning rate of the first; of the second a third of it."""
    rope_theta: float = 10_000.0
    """Base of the rotary wavelengths: 10000 has some that the short sequences do not see a whole turn of."""
    adam_beta2: float = 0.99
    """The paper's 0.9999 is for runs a thousand times longer: its memory would outlast these."""
    eval_sequences: int = 32
    """Validation sequences of --long tokens."""
    seed: int = 1234
    """Initial weights and data order."""
    results: Path = RESULTS
    """Folder of the numbers and the table."""
    images: Path = ROOT / "docs" / "images"
    """Folder of the picture."""

    def training(self, steps: int, length: int, tokens: int, lr: float) -> list[str]:
        """Flags of a training at one length."""
        given = {
            "data": self.data,
            "seq-len": length,
            "steps": steps,
            "global-batch-size": tokens // length,
            "micro-batch-size": max(1, min(tokens, 4096) // length),
            "lr": lr,
            "warmup-steps": max(1, steps // 10),
            "adam-beta2": self.adam_beta2,
            "eval-every": steps,
            "eval-sequences": 8,
            "save-every": max(1, steps // 2),
            "keep": 3,
            "seed": self.seed,
        }
        return [word for name, value in given.items() for word in (f"--{name}", str(value))]


def call(program: str, *words: object) -> None:
    """Run a program of the repository.

    Raises:
        UserError: it fails; its own error stands above.
    """
    line = [str(ROOT / program), *map(str, words)]
    if program.endswith(".py"):
        line.insert(0, sys.executable)
    if code := subprocess.run(line, check=False).returncode:
        raise UserError(f"{program} ended with code {code}; its error is above")


def train(folder: Path, words: Sequence[str], steps: int) -> None:
    """Train a run to its end, from wherever it is; flags are given to a fresh one alone."""
    if result_of(folder, steps) is not None:
        return
    if steps_in(folder):
        words = ["--resume"]
    elif folder.exists():  # cut short before its first checkpoint
        shutil.rmtree(folder)
    call("launch.sh", *words, "--save", folder)


def models(arguments: Arguments) -> dict[str, Path]:
    """Make what is compared; folders by the names that they have in the picture."""
    short, long = arguments.short, arguments.long
    first, exported = arguments.out / "short", arguments.out / "short-hf"
    words = arguments.training(arguments.steps, short, arguments.tokens_a_step, arguments.lr)
    given = ["--size", arguments.size, "--variant", arguments.variant, "--rope-theta", str(arguments.rope_theta)]
    train(first, [*given, *words], arguments.steps)
    if not exported.exists():
        call("tools/export_hf.py", first, exported)
    found = {f"trained at {short}": exported}
    factor = long / short
    scalings = {f"YaRN x {factor:g}": f"yarn:{factor:g}", "no scaling": "none"}
    for name, scaling in scalings.items():
        folder = arguments.out / scaling.partition(":")[0]
        words = arguments.training(arguments.more_steps, long, 2 * arguments.tokens_a_step, arguments.lr / 3)
        if not folder.exists():
            call("tools/convert.py", exported, folder, *words, "--rope-scaling", scaling)
        train(folder, [], arguments.more_steps)
        if scaling != "none":
            found[f"{name} alone"] = folder / "checkpoints" / "step-0"
        found[f"{name}, trained at {long}"] = folder / "checkpoints" / f"step-{arguments.more_steps}"
    return found


def score(arguments: Arguments, found: Mapping[str, Path]) -> dict[str, dict[str, Any]]:
    """Perplexity by position of each model, by name."""
    out = arguments.out / "evaluation"
    sample = ("--data", arguments.data, "--seq-len", arguments.long, "--sequences", arguments.eval_sequences)
    call("tools/evaluate.py", *found.values(), "--tasks", TASK, *sample, "--out", out, "--overwrite")
    entries = json.loads((out / "results.json").read_text(encoding="utf-8"))["models"]
    kept = ("sequences", "seq_len", "perplexity", "octaves", "bins")
    return {
        name: {key: entry[TASK][key] for key in kept} for name, entry in zip(found, entries, strict=True)
    }  # fmt: skip


def main() -> None:
    """Every training, then the table and the picture."""
    from deconattn.evaluation.pictures import looks, perplexity_by_position, write_picture

    arguments = parse(Arguments)
    if arguments.long < 3 * arguments.short:
        raise UserError(f"--long {arguments.long}: give three times --short {arguments.short} or more")
    for folder in (arguments.out, arguments.results, arguments.images):
        folder.mkdir(parents=True, exist_ok=True)
    found = score(arguments, models(arguments))
    ends = {name: numbers["octaves"][-1]["value"] for name, numbers in found.items()}
    first, second = arguments.steps * arguments.tokens_a_step, 2 * arguments.more_steps * arguments.tokens_a_step
    settings = {"size": arguments.size, "variant": arguments.variant, "trained_tokens": [first, second]}
    write_result(arguments.results / f"{NAME}.json", {**settings, "last_octave": ends, "models": found})
    title = f"Perplexity by position, {arguments.size}, {arguments.variant}"
    table = markdown_table(title, position_cells([*found.items()]))
    text = (
        f"{table}\n`{command()}`\n\n{describe()}. {first:,} tokens in sequences of {arguments.short}, then {second:,} "
        f"in sequences of {arguments.long}; scored on {arguments.eval_sequences} sequences of the validation split, "
        "95 % intervals over them.\n"
    )
    print(text)
    durable.write_text(arguments.results / f"{NAME}.md", text)
    styles = looks({name: [arguments.variant] for name in found})
    made_for = {name: arguments.short if place == 0 else None for place, name in enumerate(found)}
    write_picture(perplexity_by_position(found, styles, made_for), arguments.images / NAME)


if __name__ == "__main__":
    run(main)
