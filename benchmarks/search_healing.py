"""What a search found, and the patterns beside it, after equal healing: the same tokens in the same order, one teacher.

    OMP_NUM_THREADS=1 python benchmarks/search_healing.py --search runs/search --data PACKED --out runs/healed --jobs 2

takes the hybrids of a finished search (benchmarks/search.py), of the random draws the one of median loss, begins a run
of each with its fitted replacements and trains all weights on the predictions of the model that was searched. Losses
are of the sequences that the search has tested on; PACKED must be text that the search has not read, in the model's
tokenizer. Finished runs are skipped, interrupted ones go on. There is one run of each, so intervals are over
sequences, not over seeds.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.machine import RESULTS, ROOT, command, describe, markdown_table, write_result
from benchmarks.training.losses import result_of
from deconattn import durable
from deconattn.analysis.models import open_models
from deconattn.checkpoint.format import steps_in
from deconattn.checkpoint.kinds import kind_of
from deconattn.cli import parse, run
from deconattn.config.pattern import layer_variants
from deconattn.errors import UserError
from deconattn.statistics import Interval, mean_interval
from deconattn.surgery.activations import Activations
from deconattn.surgery.comparison import FOUND, RANDOM
from deconattn.surgery.folder import Asked, SearchFolder, read_request
from deconattn.surgery.found import write_fitted
from deconattn.surgery.request import Request
from deconattn.surgery.results import RESULTS as ROWS
from deconattn.surgery.sensitivity import losses_from
from deconattn.surgery.subject import open_subject


@dataclass(frozen=True)
class Arguments:
    """Heal the hybrids of a search alike, and compare them."""

    search: Path
    """Folder of a finished search."""
    data: Path
    """A packed corpus with a validation split, of text that the search has not read."""
    out: Path = Path("runs/search_healing")
    """Folder of the run folders."""
    names: tuple[str, ...] = (FOUND, "even", "top", "middle", "bottom", RANDOM)
    """Hybrids of the search's comparison."""
    steps: int = 60
    """Optimiser steps of each."""
    global_batch_size: int = 4
    """Sequences a step."""
    micro_batch_size: int = 4
    """Sequences in a forward pass."""
    lr: float = 3e-4
    """Peak learning rate."""
    adam_beta2: float = 0.99
    """The paper's 0.9999 is for runs a thousand times longer: its memory would outlast these."""
    jobs: int = 1
    """Runs at a time."""
    results: Path = RESULTS
    """Folder of the table and of the losses."""


def chosen(rows: Sequence[dict[str, Any]], names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return rows of hybrids by name; of the random draws the one of median loss (the upper of two)."""
    found = {}
    for name in names:
        some = sorted((row for row in rows if row["kind"] == "hybrid" and row["name"] == name), key=_loss)
        if not some:
            raise UserError(f"--names {name}: the search has compared none of this name")
        found[name] = some[len(some) // 2]
    return found


def _loss(row: dict[str, Any]) -> float:
    return float(row["loss"])


def heal(arguments: Arguments, model: Path, request: Request, folder: Path, pattern: str, fitted: Path) -> None:
    """Make a run of a hybrid and train it, unless that is done.

    Args:
        fitted: its fitted replacements.
    """
    if result_of(folder, arguments.steps) is not None:
        return
    if not steps_in(folder):
        shutil.rmtree(folder, ignore_errors=True)
        given = {
            "data": arguments.data,
            "seq-len": request.seq_len,
            "pattern": pattern,
            "fitted": fitted,
            "teacher": model,
            "distill": "logits",
            "steps": arguments.steps,
            "save-every": arguments.steps,
            "eval-every": arguments.steps,
            "keep": 1,
            "global-batch-size": arguments.global_batch_size,
            "micro-batch-size": arguments.micro_batch_size,
            "lr": arguments.lr,
            "adam-beta2": arguments.adam_beta2,
        }
        flags = [word for name, value in given.items() for word in (f"--{name}", str(value))]
        tool("convert", model, folder, *flags)
    subprocess.run([str(ROOT / "launch.sh"), "--save", str(folder), "--resume"], check=True)


def tool(name: str, *words: object) -> None:
    """Run one of the tools."""
    subprocess.run([sys.executable, str(ROOT / "tools" / f"{name}.py"), *map(str, words)], check=True)


def tested_losses(folder: Path, request: Request) -> list[float]:
    """Return a run's losses of the sequences that the search has tested on, nats a token."""
    [stored] = open_models([folder])
    subject = open_subject(stored, replace(request, variants=()))
    return losses_from(Activations(subject, subject.tested), {}, {})


def beyond(losses: Sequence[float], others: Sequence[float]) -> Interval:
    """Return what losses are beyond others of the same sequences, in pairs."""
    return mean_interval([mine - its for mine, its in zip(losses, others, strict=True)])


def shown(interval: Interval) -> str:
    """A mean with half its interval."""
    return f"{interval.mean:+.3f} \N{PLUS-MINUS SIGN} {interval.half or 0:.3f}"


def main() -> None:
    """Begin all runs, heal them, measure them, and write the table."""
    arguments = parse(Arguments)
    searched = SearchFolder(arguments.search)
    asked, own = read_request(searched), searched.own()
    if asked is None or own is None or not (arguments.search / ROWS).is_file():
        raise UserError(f"--search {arguments.search} holds no finished search: make one by benchmarks/search.py")
    hybrids = chosen(json.loads((arguments.search / ROWS).read_text(encoding="utf-8"))["rows"], arguments.names)
    for folder in (arguments.out, arguments.results):
        folder.mkdir(parents=True, exist_ok=True)
    fitted = write_all(arguments, searched, asked, {name: row["pattern"] for name, row in hybrids.items()})
    model = Path(asked.model)
    if kind_of(model) == "checkpoint":  # a run begins with a folder of Hugging Face's
        model = arguments.out / "model"
        if not model.exists():
            tool("export_hf", asked.model, model, "--dtype", "fp32")

    def healed(name: str) -> None:
        heal(arguments, model, asked.request, arguments.out / name, hybrids[name]["pattern"], fitted[name])

    with ThreadPoolExecutor(arguments.jobs) as pool:
        list(pool.map(healed, hybrids))
    after = {name: tested_losses(arguments.out / name, asked.request) for name in hybrids}
    rows = []
    for name, row in sorted(hybrids.items(), key=lambda one: sum(after[one[0]])):
        more = beyond(after[name], own.tested)
        closed = f"{100 * (1 - more.mean / row['increase']):.0f}"
        before = f"{row['increase']:+.3f} \N{PLUS-MINUS SIGN} {(row['high'] - row['low']) / 2:.3f}"
        past = "" if name == FOUND or FOUND not in after else shown(beyond(after[name], after[FOUND]))
        rows.append([name, str(row["kept"]), before, shown(more), closed, past])
    titles = ["hybrid", "kept", "before healing", "after", "of it recovered, %", "beyond found"]
    tokens = arguments.steps * arguments.global_batch_size * asked.request.seq_len
    text = (
        f"# A search's hybrids after equal healing\n\n`{command()}`\n\n{describe()}. {asked.label}; {tokens:,} tokens "
        f"of the teacher's predictions each, peak learning rate {arguments.lr:g}. Increase of the loss over the "
        f"model's own, {sum(own.tested) / len(own.tested):.3f} nats a token, with 95 % intervals over "
        f"{len(own.tested)} sequences, in pairs. One run of each: no interval over seeds.\n\n"
        f"{markdown_table(titles, rows)}"
    )
    print(text)
    durable.write_text(arguments.results / "search_healing.md", text)
    named = {name: {"pattern": row["pattern"], "losses": after[name]} for name, row in hybrids.items()}
    write_result(arguments.results / "search_healing.json", {"model": asked.label, "own": own.tested, "healed": named})


def write_all(arguments: Arguments, searched: SearchFolder, asked: Asked, patterns: dict[str, str]) -> dict[str, Path]:
    """Write each hybrid's fitted replacements, and return the files."""
    files = {name: arguments.out / f"{name}.safetensors" for name in patterns}
    if not all(file.is_file() for file in files.values()):
        [stored] = open_models([Path(asked.model)], plugins=asked.request.plugin)
        subject = open_subject(stored, asked.request)
        known = ("standard", *asked.request.variants)
        for name, pattern in patterns.items():
            assignment = tuple(layer_variants(pattern, "standard", subject.depth, known))
            write_fitted(searched, subject, assignment, files[name])
    return files


if __name__ == "__main__":
    run(main)
