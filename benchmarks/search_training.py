"""Whether a pattern that a search finds in a trained model is also the better one to train from the start, over seeds.

    OMP_NUM_THREADS=1 python benchmarks/search_training.py --data PACKED --out runs/patterns --jobs 2

trains a standard model, searches it for the `--keep` layers that need attention (tools/search.py), and trains the found
hybrid and others of the comparison (`random`: the draw of median loss), every one from its first weights with every
seed. They have in each replaced layer the variant that the search's table likes best there. Finished runs are skipped,
interrupted ones go on. The search reads text of the validation split, on which the runs are compared too; what it
could learn of that text is which layers to keep.
"""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.healing import shown, train
from benchmarks.machine import RESULTS, ROOT, command, describe, markdown_table, write_result
from benchmarks.search_healing import chosen
from deconattn import durable
from deconattn.cli import parse, run
from deconattn.errors import UserError
from deconattn.statistics import mean_interval, paired_difference
from deconattn.surgery.comparison import FOUND
from deconattn.surgery.results import RESULTS as ROWS

STANDARD, EVEN = "standard", "even"


@dataclass(frozen=True)
class Arguments:
    """Search a trained model, and train what is found and other patterns from the start."""

    data: Path
    """A packed corpus with a validation split."""
    out: Path = Path("runs/search_training")
    """Folder of the run folders and of the search."""
    size: str = "tiny"
    """Preset of dimensions."""
    layers: int = 6
    """Layers of the models."""
    keep: int = 3
    """Standard layers of the hybrids."""
    names: tuple[str, ...] = (FOUND, EVEN)
    """Hybrids of the search's comparison to train."""
    steps: int = 1500
    """Optimiser steps of each run."""
    global_batch_size: int = 4
    """Sequences a step."""
    micro_batch_size: int = 4
    """Sequences in a forward pass."""
    seq_len: int = 256
    """Tokens in a sequence."""
    lr: float = 2e-3
    """Peak learning rate."""
    adam_beta2: float = 0.99
    """The paper's 0.9999 is for runs a thousand times longer: its memory would outlast these."""
    seeds: int = 5
    """Seeds of each hybrid; the model that is searched has the first."""
    eval_sequences: int = 256
    """Validation sequences."""
    jobs: int = 1
    """Runs at a time."""
    results: Path = RESULTS
    """Folder of the table and of the losses."""

    def flags(self, seed: int) -> dict[str, object]:
        """Flags that all runs give."""
        return {
            "data": self.data,
            "size": self.size,
            "num-hidden-layers": self.layers,
            "steps": self.steps,
            "save-every": self.steps,
            "eval-every": self.steps,
            "keep": 1,
            "seq-len": self.seq_len,
            "global-batch-size": self.global_batch_size,
            "micro-batch-size": self.micro_batch_size,
            "lr": self.lr,
            "adam-beta2": self.adam_beta2,
            "eval-sequences": self.eval_sequences,
            "seed": seed,
        }


def main() -> None:
    """The model and its search, the runs of every pattern, then the table."""
    arguments = parse(Arguments)
    for folder in (arguments.out, arguments.results):
        folder.mkdir(parents=True, exist_ok=True)
    its_loss = train(arguments.out / f"{STANDARD}-0", arguments.flags(0), arguments.steps)
    searched = arguments.out / "search"
    words = [str(arguments.out / f"{STANDARD}-0"), "--data", str(arguments.data), "--out", str(searched)]
    words += ["--seq-len", str(arguments.seq_len), "--keep", str(arguments.keep)]
    code = subprocess.run([sys.executable, str(ROOT / "tools" / "search.py"), *words], check=False).returncode
    if code:
        raise UserError(f"tools/search.py ended with {code}: what it said is above; the same command goes on")
    rows = chosen(json.loads((searched / ROWS).read_text(encoding="utf-8"))["rows"], arguments.names)
    wanted = [*product(rows, range(arguments.seeds))]

    def loss(name: str, seed: int) -> float:
        flags = {**arguments.flags(seed), "pattern": rows[name]["pattern"]}
        return train(arguments.out / f"{name}-{seed}", flags, arguments.steps)

    with ThreadPoolExecutor(arguments.jobs) as pool:
        found = dict(zip(wanted, pool.map(lambda one: loss(*one), wanted), strict=True))
    losses = {name: {seed: found[name, seed] for seed in range(arguments.seeds)} for name in rows}
    lines = []
    for name, by_seed in losses.items():
        past = "" if name == EVEN or EVEN not in losses else shown(paired_difference(by_seed, losses[EVEN]))
        before = f"{rows[name]['increase']:+.3f}"
        lines.append([name, f"`{rows[name]['pattern']}`", before, shown(mean_interval([*by_seed.values()])), past])
    titles = ["hybrid", "pattern", "replaced in the trained model", "trained from the start", "less even's"]
    tokens = arguments.steps * arguments.global_batch_size * arguments.seq_len
    text = (
        f"# Patterns of a search, trained from the start\n\n`{command()}`\n\n{describe()}. {arguments.size} with "
        f"{arguments.layers} layers, {arguments.keep} of them standard; {tokens:,} tokens a run, {arguments.seeds} "
        "seeds. Validation losses in nats a token with 95 % intervals over seeds, differences in pairs; of the model "
        f"that was searched ({its_loss:.3f}) the increase of the loss before healing.\n\n"
        f"{markdown_table(titles, lines)}"
    )
    print(text)
    durable.write_text(arguments.results / "search_training.md", text)
    patterns = {name: row["pattern"] for name, row in rows.items()}
    result = {"standard": its_loss, "patterns": patterns, "losses": losses}
    write_result(arguments.results / "search_training.json", result)


if __name__ == "__main__":
    run(main)
